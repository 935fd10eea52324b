"""`llava_main`, in C++ and in Python: the golden captions by the seed's command line, and clear words for bad inputs."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tests.support import EMBEDDED_PTE, OPTIMUM_PTE, UPSTREAM_PTE
from verifier.commands.ask import main as ask_in_python
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint
from verifier.faults.tokenizer_forms import write_bin
from verifier.golden.records import load_golden
from verifier.runner.native import NativeRunner
from verifier.runner.qemu import QemuRunner
from verifier.runner.tokenizer import open_tokenizer

pytestmark = pytest.mark.xdist_group("runner")
WORDS = "A chat between human large small red circle the a is it what's below ring  star éü 日本 🙂 \n\t <image> </s> 12 ASSISTANT: USER:"


@pytest.fixture(scope="module")
def artifacts(once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """`tokenizer.bin`, and golden images as runners read them."""

    def build(folder: Path) -> None:
        from verifier.export.image_tensor import save_image_tensor
        from verifier.families.llava.preprocess import prepare_image
        from verifier.families.pixels.image_file import read_image

        write_bin(EMBEDDED / "tokenizer.model", folder / "tokenizer.bin")
        for name in ("odd_333x335", "pair_base"):
            image = prepare_image(read_image(EMBEDDED / "images" / f"{name}.png"))
            save_image_tensor(image, folder / f"{name}.npy")
            save_image_tensor(image, folder / f"{name}.pt")

    return once("runner-artifacts", build)


def _command(kind: str, native: NativeRunner) -> list[str]:
    return [str(native.binary)] if kind == "native" else [sys.executable, "-m", "verifier.runner.llava_main"]


def _ask(command: list[str], **flags: object) -> subprocess.CompletedProcess[str]:
    words = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("kind", "suffix", "image"),
    [
        *(("native", suffix, image) for suffix in ("npy", "pt") for image in ("odd_333x335", "pair_base")),
        *(("python", "npy", "odd_333x335"), ("python", "pt", "pair_base")),
    ],
)
def test_golden_caption_by_the_seeds_command(
    kind: str, suffix: str, image: str, artifacts: Path, native: NativeRunner
) -> None:
    """The prompt, the golden answer, a stopwatch line; exit status 0."""
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == image)
    assert wanted.question == ""
    done = _ask(
        _command(kind, native),
        model_path=EMBEDDED_PTE,
        tokenizer_path=artifacts / "tokenizer.bin",
        image_path=artifacts / f"{image}.{suffix}",
        prompt="ASSISTANT:",
        seq_len=768,
        temperature=0,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"ASSISTANT: {wanted.text}\n"
    stopwatch = done.stderr.splitlines()[-1]
    tokens = len(wanted.ids) - 1
    assert stopwatch.startswith("prefill ")
    assert f"tokens/s ({tokens} tokens)" in stopwatch


@pytest.mark.parametrize("kind", ["native", "python"])
def test_golden_caption_of_a_photograph(kind: str, artifacts: Path, native: NativeRunner) -> None:
    """The seed's command line with a .jpg, which is not square."""
    image = "photo_flower.jpg"
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == image.partition(".")[0])
    flags = {"model_path": EMBEDDED_PTE, "image_path": EMBEDDED / "images" / image, "prompt": "ASSISTANT:"}
    done = _ask(_command(kind, native), **flags, tokenizer_path=artifacts / "tokenizer.bin", seq_len=768, temperature=0)
    assert (done.returncode, done.stdout) == (0, f"ASSISTANT: {wanted.text}\n"), done.stderr


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize("image", ["odd_333x335", "pair_base"])
def test_golden_caption_of_another_exporters_program(
    kind: str, image: str, artifacts: Path, native: NativeRunner
) -> None:
    """optimum-executorch's takes normalized pixels and the position of each token, and returns all logits; it names no get_eos_ids."""
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == image)
    flags = {"model_path": OPTIMUM_PTE, "image_path": artifacts / f"{image}.npy"}
    done = _ask(_command(kind, native), **flags, tokenizer_path=artifacts / "tokenizer.bin")
    assert (done.returncode, done.stdout) == (0, f"ASSISTANT: {wanted.text}\n"), done.stderr


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_long_prompt_goes_in_in_pieces(kind: str, artifacts: Path, native: NativeRunner) -> None:
    """Upstream's program embeds 84 tokens in one call; a question of more is answered. An empty one is refused."""
    flags = {"model_path": UPSTREAM_PTE, "image_path": artifacts / "pair_base.npy"}
    flags["tokenizer_path"] = artifacts / "tokenizer.bin"
    done = _ask(_command(kind, native), **flags, prompt="What is shown? " * 12 + "ASSISTANT:", seq_len=766)
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("prefill")) == (0, True), done.stderr
    prefilled = int(done.stderr.splitlines()[-1].split("(")[1].split()[0])
    assert prefilled > 576 + 84
    empty = _ask(_command(kind, native), **flags, prompt="")
    assert (empty.returncode, "there is no text" in empty.stderr) == (2, True), empty.stderr


def test_golden_caption_on_arm(artifacts: Path, emulated: QemuRunner) -> None:
    """The seed's command line, aarch64 under emulation: the same text, so the same greedy tokens."""
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == "pair_base")
    words = [*emulated.emulation, str(emulated.binary), f"--model_path={EMBEDDED_PTE}", "--prompt=ASSISTANT:"]
    words += [f"--tokenizer_path={artifacts / 'tokenizer.bin'}", f"--image_path={artifacts / 'pair_base.pt'}"]
    done = subprocess.run(
        [*words, "--seq_len=768", "--temperature=0"], capture_output=True, text=True, check=False, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, f"ASSISTANT: {wanted.text}\n"), done.stderr
    assert done.stderr.splitlines()[-1].startswith("prefill ")


@pytest.mark.parametrize("kind", ["native", "python"])
def test_answer_ends_at_seq_len(kind: str, artifacts: Path, native: NativeRunner) -> None:
    """Three positions behind the prompt: four tokens; a prompt that does not fit is refused."""
    flags = {
        "model_path": EMBEDDED_PTE,
        "tokenizer_path": artifacts / "tokenizer.bin",
        "image_path": artifacts / "pair_base.npy",
    }
    whole = _ask(_command(kind, native), **flags)
    length = int(whole.stderr.splitlines()[-1].split("(")[1].split()[0])
    done = _ask(_command(kind, native), **flags, seq_len=length + 3)
    assert done.returncode == 0
    assert "(4 tokens)" in done.stderr
    assert whole.stdout.startswith(done.stdout.rstrip("\n"))
    short = _ask(_command(kind, native), **flags, seq_len=length - 1)
    assert short.returncode == 2
    assert str(length) in short.stderr


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model_path": "none.pte"}, "no such program"),
        ({"tokenizer_path": "none.bin"}, "no such tokenizer"),
        ({"image_path": "none.npy"}, "no such image"),
        ({"tokenizer_path": "{image}"}, "not a tokenizer.bin"),
        ({"model_path": "{text}"}, "not a program of this runtime"),
        ({"image_path": "{flat}"}, "not an image"),
        ({"image_path": "{half}"}, "cannot be read"),
        ({"image_path": "{zip}"}, "image"),
        ({"temperature": "-1"}, ""),
        ({"seq_len": "0"}, ""),
    ],
)
def test_bad_inputs_are_refused(
    kind: str,
    flags: dict[str, str],
    said: str,
    artifacts: Path,
    native: NativeRunner,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, and what is wrong. (Python is asked in this process: nothing runs.)"""
    np.save(tmp_path / "flat.npy", np.zeros(5, np.uint8))
    (tmp_path / "x.pte").write_text("text " * 1000)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data/0", b"pixels, but no image.npy")
    places = {
        "zip": tmp_path / "x.pt",
        "image": artifacts / "pair_base.npy",
        "text": tmp_path / "x.pte",
        "flat": tmp_path / "flat.npy",
        "half": tmp_path / "half.jpg",
    }
    photo = (EMBEDDED / "images" / "photo_china.jpg").read_bytes()
    places["half"].write_bytes(photo[: len(photo) // 2])
    sound = {
        "model_path": str(EMBEDDED_PTE),
        "tokenizer_path": str(artifacts / "tokenizer.bin"),
        "image_path": str(artifacts / "pair_base.npy"),
    }
    given = sound | {k: v.format(**places) for k, v in flags.items()}
    if kind == "native":
        done = _ask(_command(kind, native), **given)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    else:
        status = ask_in_python([f"--{name}={value}" for name, value in given.items()])
        assert (status, said in (printed := capfd.readouterr().err)) == (2, True), printed


def test_tokenizer_is_sentencepieces(artifacts: Path) -> None:
    """Ids of 300 odd texts, and the pieces back."""
    ours = open_tokenizer(artifacts / "tokenizer.bin")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(EMBEDDED / "tokenizer.model"))
    rng = random.Random(0)
    texts = ["", " two  blanks ", "ASSISTANT:"]
    for _ in range(300):
        texts.append(
            "".join(rng.choice(WORDS.split(" ")) + rng.choice((" ", "", "  ")) for _ in range(rng.randint(1, 30)))
        )
    for text in texts:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert b"".join(ours.piece(i) for i in ids).decode() == (f" {text}" if text else "")
    assert (ours.bos, ours.eos) == (theirs.bos_id(), (theirs.eos_id(),))


@pytest.mark.parametrize("kind", ["native", "python"])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_golden_caption_with_every_tokenizer_file(kind: str, name: str, artifacts: Path, native: NativeRunner) -> None:
    """The checkpoint's own files do as well as tokenizer.bin."""
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == "odd_333x335")
    flags = {"model_path": EMBEDDED_PTE, "image_path": artifacts / "odd_333x335.npy"}
    done = _ask(_command(kind, native), **flags, tokenizer_path=EMBEDDED / name)
    assert (done.returncode, done.stdout) == (0, f"ASSISTANT: {wanted.text}\n"), done.stderr


@pytest.mark.parametrize("kind", ["native", "python"])
def test_program_without_eos_ends_by_the_tokenizer(
    kind: str, artifacts: Path, native: NativeRunner, tmp_path: Path
) -> None:
    """A program that names no EOS: the tokenizer's ends the answer."""
    data, flags = EMBEDDED_PTE.read_bytes(), {"image_path": artifacts / "odd_333x335.npy"}
    (tmp_path / "a.pte").write_bytes(data.replace(b"get_eos_ids\0", b"xet_eos_ids\0"))
    expected = _ask(
        _command(kind, native), **flags, model_path=EMBEDDED_PTE, tokenizer_path=EMBEDDED / "tokenizer.json"
    )
    done = _ask(
        _command(kind, native), **flags, model_path=tmp_path / "a.pte", tokenizer_path=EMBEDDED / "tokenizer.json"
    )
    assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr


def test_workspaces_and_constants_as_asked(native: NativeRunner, artifacts: Path) -> None:
    """Workspaces shared or not, constants mapped or copied: the same caption; another mode is refused by name."""
    flags = {
        "model_path": EMBEDDED_PTE,
        "tokenizer_path": artifacts / "tokenizer.bin",
        "image_path": artifacts / "odd_333x335.npy",
    }
    said = {
        mode: _ask([str(native.binary)], **flags, workspace_sharing=mode)
        for mode in ("disabled", "per_model", "global", "x")
    }
    assert len({said[mode].stdout for mode in ("disabled", "per_model", "global")}) == 1
    assert said["global"].returncode == 0
    loaded = {mode: _ask([str(native.binary)], **flags, load_mode=mode) for mode in ("file", "x")}
    assert loaded["file"].stdout == said["global"].stdout
    assert (loaded["x"].returncode, "expected mmap or file" in loaded["x"].stderr) == (2, True)
    assert (said["x"].returncode, "expected disabled, per_model or global" in said["x"].stderr) == (2, True)
