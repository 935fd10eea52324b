"""Golden answers of a checkpoint that nobody has made any for: pictures of the package, answered by the fp32 reference, once.

What was answered is kept in the user's cache. The program under test proposes the answers of a large checkpoint, which saves passes over its
weights and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np

from verifier import families
from verifier.core.errors import GoldenError, UsageError, VerifierError
from verifier.core.limits import LIMITS
from verifier.core.progress import Progress
from verifier.core.python import cache_folder
from verifier.core.records import JsonObject
from verifier.export.manifest import package_versions
from verifier.families.answering import greedy_answers, with_margins
from verifier.families.definition import Definition
from verifier.families.driver import Conversation, Script, converse_freely
from verifier.families.samples import Answered, Sample
from verifier.gather.conversations import Outputs, run_bundle
from verifier.gather.opening import Opened
from verifier.gather.samples import longest_conversation
from verifier.golden.kept import KeptAnswers, key_of
from verifier.golden.records import GoldenOrigin
from verifier.measures.evidence import Part
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle

TIE = LIMITS["greedy.golden.tie"]
ANSWER_TOKENS = 20
"""Of an answer to a picture of the package. Each may be one more pass over the weights of a large checkpoint: half a minute of a 7B, if nothing that
the program proposes is right. llava_tiny's captions have 10 to 19."""


@dataclass(frozen=True)
class AnsweredGoldens:
    """A request whose golden images have answers, its samples, and where the answers came from. `keys` of the samples in the cache. What was computed
    is at hand for the rest of the run: the definition, and, if all were, what the reference gave for each sample."""

    opened: Opened
    samples: list[Sample]
    origin: GoldenOrigin
    keys: tuple[str, ...] = ()
    definition: Definition | None = None
    known: tuple[Answered, ...] = ()


def with_answers(
    opened: Opened, samples: list[Sample], progress: Progress, *, meanwhile: Callable[[], object] = lambda: None
) -> AnsweredGoldens:
    """Golden images with their answers, from their file, from the cache, or computed now. Raises `VerifierError`.

    `meanwhile` is called before the reference computes, when the program was asked all that it takes.
    """
    count = len(opened.golden.images)
    if not opened.golden.packaged:
        return AnsweredGoldens(opened, samples, GoldenOrigin("file" if count else "none", count))
    if not _asks_for_answers(opened):
        forced = [_forced(sample) for sample in samples]
        return AnsweredGoldens(_holding(opened, forced), forced, GoldenOrigin("package", count))
    with progress.stage("answers of the fp32 reference"):
        return _answered(opened, samples, progress, meanwhile)


def _asks_for_answers(opened: Opened) -> bool:
    """Whether a chosen check looks at more of the golden images than their pixels."""
    return any(check.golden and check.needs.parts - {Part.PIXELS} for check in opened.checks)


def _forced(sample: Sample) -> Sample:
    """A sample with the beginning of its prompt for an answer, which no check takes for one."""
    return replace(sample, golden=replace(sample.golden, ids=sample.prompt.after[:1]))


def _answered(
    opened: Opened, samples: list[Sample], progress: Progress, meanwhile: Callable[[], object]
) -> AnsweredGoldens:
    kept, room = KeptAnswers(answers_folder()), _room(opened, samples)
    keys = [answer_key(opened, sample, room) for sample in samples]
    vocabulary, ends = opened.checkpoint.geometry.text.vocabulary, opened.tokenizer.ends
    definition, problem = None, ""
    with kept.alone(keys[0]):
        found = [kept.read(key, vocabulary=vocabulary, ends=ends, room=room) for key in keys]
        lacking = [number for number, ids in enumerate(found) if ids is None or opened.request.refresh]
        answers: list[Answered] = []
        if lacking:
            definition, answers = _compute(opened, [samples[number] for number in lacking], room, progress, meanwhile)
        for number, answer in zip(lacking, answers, strict=True):
            found[number] = ids = answer.favoured
            try:
                kept.write(keys[number], ids)
            except UsageError as error:
                problem = error.one_line
    made = [_with_ids(opened, sample, ids or ()) for sample, ids in zip(samples, found, strict=True)]
    return AnsweredGoldens(
        _holding(opened, made),
        made,
        GoldenOrigin("package", len(made), len(lacking), len(made) - len(lacking), str(kept.folder), problem),
        tuple(keys),
        definition,
        tuple(answers) if len(answers) == len(made) else (),
    )


def _room(opened: Opened, samples: Sequence[Sample]) -> int:
    """Tokens that an answer may have: `ANSWER_TOKENS`, or as many as the program's cache has room for. Raises `GoldenError` for none."""
    longest = max(sample.prompt.length(opened.family.patches) for sample in samples)
    room = min(ANSWER_TOKENS, opened.artifact.max_seq_len + 1 - longest)
    if room < 1:
        raise GoldenError(
            "the program's cache has no room for a picture, a question and an answer",
            got=f"get_max_seq_len {opened.artifact.max_seq_len}",
            expected=f"at least {longest}",
            where=opened.artifact.path,
            fix="export with a larger --max-seq-len",
        )
    return room


def _compute(
    opened: Opened, samples: Sequence[Sample], room: int, progress: Progress, meanwhile: Callable[[], object]
) -> tuple[Definition, list[Answered]]:
    """The answers of the fp32 reference, and the definition that gave them."""
    whole = [replace(sample, golden=replace(sample.golden, ids=(0,) * room)) for sample in samples]
    definition = opened.family.definition(max_len=longest_conversation(opened, whole))
    drafts = draft_answers(opened, samples, room) if opened.family.large else [()] * len(samples)
    meanwhile()
    ends = opened.tokenizer.ends
    answers = greedy_answers(definition, samples, ends=ends, room=room, drafts=drafts, on_progress=progress.counted)
    definition.forget()
    return definition, answers


def _with_ids(opened: Opened, sample: Sample, ids: tuple[int, ...]) -> Sample:
    return replace(sample, golden=replace(sample.golden, ids=ids, text=opened.tokenizer.decode(ids)))


def _holding(opened: Opened, samples: Sequence[Sample]) -> Opened:
    return replace(opened, golden=replace(opened.golden, images=tuple(sample.golden for sample in samples)))


def held_against_reference(
    golden: AnsweredGoldens, samples: Sequence[Sample], answers: Sequence[Answered]
) -> list[Sample]:
    """The samples, those of the package with fp32's margins. Raises `GoldenError` for a kept answer that is not the reference's, which is forgotten
    then."""
    held = list(samples)
    for number, (key, sample, answered) in enumerate(zip(golden.keys, samples, answers, strict=False)):
        made = held[number] = with_margins(sample, answered)
        wrong = [at for at, token in enumerate(answered.favoured) if token != sample.golden.ids[at]]
        if all(TIE.admits(made.golden.margins[at]) for at in wrong):
            continue
        kept = KeptAnswers(answers_folder())
        kept.remove(key)
        raise GoldenError(
            f"the kept answer to {sample.golden.name} is not the fp32 reference's",
            got=repr(sample.golden.text),
            expected=repr(golden.opened.tokenizer.decode(list(answered.favoured))),
            where=kept.folder,
            fix="it was removed: run again",
        )
    return held


def answers_folder() -> Path:
    """Where answers are kept: `answers` in this package's folder of the user's cache."""
    return cache_folder() / "answers"


def answer_key(opened: Opened, sample: Sample, room: int) -> str:
    """The hash of all that an answer depends on: the checkpoint, what of the picture goes in, the prompt, where answers end, and the code that
    computes it."""
    image = sample.image
    return key_of(
        {
            "checkpoint": opened.checkpoint.sha256,
            "pixels": [image.dtype.str, list(image.shape), hashlib.sha256(image.tobytes()).hexdigest()],
            "prompt": [list(sample.prompt.before), list(sample.prompt.after)],
            "ends": list(opened.tokenizer.ends),
            "tokens": room,
            "code": _code(),
        }
    )


@cache
def _code() -> JsonObject:
    """Versions of the packages, and a digest of the modules, that compute an answer."""
    digest = hashlib.sha256()
    root = Path(families.__path__[0])
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return package_versions() | {"families": digest.hexdigest()}


def draft_answers(opened: Opened, samples: Sequence[Sample], room: int) -> list[tuple[int, ...]]:
    """What the program answers on this machine, as far as it does; nothing for all if it cannot be run."""
    script, limit, patches = Script(opened.caller), opened.artifact.max_seq_len, opened.family.patches
    made = [
        converse_freely(script, image=s.image, prompt=s.prompt, tokens=room, patches=patches, limit=limit)
        for s in samples
    ]
    try:
        outputs = run_bundle(LocalRunner(), Bundle(opened.artifact.path, tuple(script.calls))).outputs
    except VerifierError:
        return [()] * len(samples)
    return [_favoured(one, outputs) for one in made]


def _favoured(conversation: Conversation, outputs: Outputs) -> tuple[int, ...]:
    """The tokens that a conversation's logits favour, up to the first call that did not return."""
    rows = takewhile(lambda row: row is not None, (outputs.get(call) for call in conversation.logits))
    return tuple(int(np.argmax(np.asarray(row))) for row in rows)
