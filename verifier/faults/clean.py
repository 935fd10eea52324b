"""Sound artifacts in sound use, many times over: the gate must say yes to every one of them.

Each is a `Fault` that injects nothing wrong, with exit status 0 as its right answer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from verifier.families.checkpoint import EMBEDDED
from verifier.faults.fault import Fault, Inject, Work
from verifier.faults.in_use import in_stretches
from verifier.faults.subjects import answer_images, calibration_draw, link_images, make_micro_model
from verifier.faults.tokenizer_forms import as_transformers_4

VERIFIED = 0
CONVERSATIONS = "preprocess.*,splice.*,vision.*,embedding.*,logits.*,greedy.*"
LAYERS = "weights.*,layers.coverage,layers.finite,layers.kernel,layers.constants,layers.graph"
CACHE = "kvcache.*,threads.*,structure.lifetimes"
FIRST_SEED = 100
"""Of the exports. `golden.llava_tiny.make.variants` draws with 0 and 1: what the gate must pass is not what its tolerances come from."""
SHAPES: dict[str, dict[str, object]] = {
    "plain": {},
    "one key head": {"num_key_value_heads": 1},
    "no sharing": {"num_key_value_heads": 4},
    "wide": {"hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8, "num_key_value_heads": 4},
    "deep": {"num_hidden_layers": 4},
    "theta": {"rope_theta": 1e6, "rms_norm_eps": 1e-6},
}
RECIPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "hqq": ("--quantizer", "hqq"),
    "groups of 64": ("--group-size", "64"),
    "plain attention": ("--no-use-sdpa-with-kv-cache",),
    "square images": ("--static-image-shape",),
    "4-bit embedding": ("--embedding-bits", "4"),
    "fp32 embedding": ("--embedding-bits", "32"),
    "short": ("--max-seq-len", "256", "--max-context-len", "256"),
}
QUESTIONS = (
    "What is in this image?",
    "Is there anything red?",
    "How many objects are there, and where do they stand?",
    "Wo steht der Kreis?",
    "图里有什么？",
    "Reply with one word.",
    "",
    "List every object, its colour, its size and its place, from left to right and from top to bottom. " * 2,
)


def _images() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in (EMBEDDED / "images").iterdir()))


def _sound(name: str, text: str, checks: str, inject: Inject) -> Fault:
    return Fault(name, "clean", (), text, (), "", inject, status=VERIFIED, quick=checks)


def _arguments(*words: str) -> Inject:
    return lambda work: work.arguments.extend(words)


def _golden_images() -> Iterator[Fault]:
    """Every golden image on its own: layer by layer on the Python runtime, conversations on the C++ one."""
    for image in _images():
        stem = Path(image).stem
        yield _sound(
            f"local-{stem}", "one golden image", f"{CONVERSATIONS},{LAYERS}", _arguments("--images", stem + "*")
        )
        words = ("--images", stem + "*", "--target", "native")
        yield _sound(f"native-{stem}", "one golden image, C++ runner", CONVERSATIONS, _arguments(*words))


def _unseen_image(seed: int) -> Inject:
    def inject(work: Work) -> None:
        """A picture that nobody made a golden answer to: shapes of any size and colour on any ground, of any proportions."""
        rng = random.Random(seed)

        def colour() -> tuple[int, int, int]:
            return rng.randrange(256), rng.randrange(256), rng.randrange(256)

        size = rng.randrange(40, 900), rng.randrange(40, 900)
        picture = Image.new("RGB", size, colour())
        draw = ImageDraw.Draw(picture)
        for _ in range(rng.randrange(1, 6)):
            x, y = rng.randrange(size[0]), rng.randrange(size[1])
            box = (x, y, x + rng.randrange(5, 300), y + rng.randrange(5, 300))
            (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour())
        path = work.folder / "unseen.png"
        picture.save(path)
        work.arguments += [str(path), "--images", "blank*"]

    return inject


def _unseen_images(count: int) -> Iterator[Fault]:
    """Pictures that only fp32 has answered, now."""
    for seed in range(count):
        yield _sound(f"unseen-{seed}", "an unseen picture", "greedy.*,splice.*,vision.*", _unseen_image(seed))


def _asked(number: int) -> Inject:
    def inject(work: Work) -> None:
        """Golden answers to another question, by the fp32 model."""
        model = work.own_model()
        (model / "golden.json").unlink()
        name = _images()[number % len(_images())]
        for path in (model / "images").iterdir():
            if path.name != name:
                path.unlink()
        answer_images(model, questions=(QUESTIONS[number % len(QUESTIONS)],))

    return inject


def _questions(count: int) -> Iterator[Fault]:
    """Other prompts."""
    checks = f"preprocess.*,splice.*,greedy.golden,greedy.limit,greedy.history,{LAYERS}"
    for number in range(count):
        yield _sound(f"question-{number}", "another question", checks, _asked(number))


def _random_model(seed: int) -> Inject:
    def inject(work: Work) -> None:
        """Random weights, another shape and another recipe."""
        rng = random.Random(seed)
        shape = list(SHAPES.values())[seed % len(SHAPES)]
        names = rng.sample(sorted(RECIPES), 2)
        if {"4-bit embedding", "fp32 embedding"} <= set(names):
            names = names[:1]
        words = [word for name in names for word in RECIPES[name]]
        if "groups of 64" in names and shape.get("hidden_size", 64) == 64:
            words[words.index("--group-size") + 1] = "32"
        folder = work.folder / "model"
        folder.mkdir()
        work.pte = make_micro_model(folder, *words, seed=seed, **shape)
        work.model = folder

    return inject


def _random_models(count: int) -> Iterator[Fault]:
    """Seeds, shapes and recipes."""
    for seed in range(count):
        yield _sound(f"random-{seed}", "a random model", f"{LAYERS},{CACHE},splice.*", _random_model(seed))


def _calibrated_on(seed: int, image: str) -> Inject:
    def inject(work: Work) -> None:
        """An export whose int8 ranges come from other images; made once for all that look at it."""
        from filelock import FileLock

        kept = work.folder.parent / f"export-{seed}.pte"
        with FileLock(kept.with_suffix(".lock")):
            if not kept.exists():
                folder = work.folder / "calibration"
                link_images(folder, calibration_draw(seed))
                work.export(lambda: None, "--calibration", str(folder))
                work.pte.replace(kept)
        work.pte.unlink(missing_ok=True)
        os.link(kept, work.pte)
        work.arguments += ["--images", Path(image).stem + "*"]

    return inject


def _other_exports(seeds: int, images: int) -> Iterator[Fault]:
    """Equally good exports that the tolerances were not made with: see `FIRST_SEED`."""
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        for image in _images()[:: max(1, len(_images()) // images)][:images]:
            name = f"export-{seed}-{Path(image).stem}"
            yield _sound(name, "calibrated on other images", CONVERSATIONS, _calibrated_on(seed, image))


def _on_cores(count: int, *words: str) -> Inject:
    def inject(work: Work) -> None:
        """On some cores only."""
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        work.arguments += words

    return inject


def _cores() -> Iterator[Fault]:
    """One core and all, both runners, the probes of cache and threads among the checks."""
    for count in (1, 2):
        for target in ("local", "native"):
            for image in ("square_1", "tall_0"):
                inject = _on_cores(count, "--images", image + "*", "--target", target)
                yield _sound(f"cores-{count}-{target}-{image}", f"{count} cores", f"{CACHE},logits.*,greedy.*", inject)


def _phones(count: int) -> Iterator[Fault]:
    """Emulated phones."""
    for cpu, image in zip(("cortex-a76", "max,sme=off") * count, _images()[3:], strict=False):
        words = ("--target", f"qemu:{cpu}", "--images", Path(image).stem + "*")
        name = f"qemu-{cpu.partition(',')[0]}-{Path(image).stem}"
        yield _sound(name, "an emulated phone", "layers.*,device.*", _arguments(*words))


def _in_published_form(*words: str, stretches: bool = False) -> Inject:
    def inject(work: Work) -> None:
        """The tokenizer as the 7B was published, alike and with each stretch of text encoded by itself."""
        as_transformers_4(work.own_model())
        work.arguments.extend(words)
        if stretches:
            in_stretches(blank=True)

    return inject


def _without_blank(work: Work) -> None:
    """Each stretch of text encoded by itself, without a blank, as this tokenizer has it."""
    in_stretches(blank=False)


def _tokenizers() -> Iterator[Fault]:
    """What is wrong for one form of a tokenizer is right for the other: rows 22 and 61."""
    checks = f"{CONVERSATIONS},{LAYERS}"
    yield _sound("published-form", "a blank behind the image", checks, _in_published_form("--images", "s*"))
    inject = _in_published_form("--images", "s*", stretches=True)
    yield _sound("published-form-leading-blank", "a blank put where the tokenizer has one", CONVERSATIONS, inject)
    yield _sound("own-form-no-blank", "no blank where the tokenizer has none", CONVERSATIONS, _without_blank)


def sound_artifacts(scale: float = 1.0, *, phones: bool = True) -> list[Fault]:
    """All of them: 213 by default."""

    def some(count: int) -> int:
        return max(1, round(count * scale))

    made: list[Callable[[], Iterator[Fault]]] = [
        lambda: _random_models(some(32)),
        lambda: _other_exports(some(2), 12),
        _golden_images,
        lambda: _unseen_images(some(58)),
        lambda: _questions(some(24)),
        _cores,
        _tokenizers,
    ]
    if phones:
        made.append(lambda: _phones(some(3)))
    return [fault for family in made for fault in family()]
