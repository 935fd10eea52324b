"""The samples of a run besides the golden ones as they are recorded: the user's own picture, a picture of ours where there is no golden data, answers
to another tokenizer's prompt, pixels of the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verifier.core.errors import GoldenError
from verifier.families.answering import greedy_answer, load_sample, with_margins
from verifier.families.checkpoint import EMBEDDED
from verifier.families.definition import Definition
from verifier.families.family import Family
from verifier.families.pixels.published import published_samples
from verifier.families.samples import Answered, Sample
from verifier.families.tokens.records import described
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.gather.opening import Opened
from verifier.golden.records import GoldenImage
from verifier.measures.evidence import USER

USER_ANSWER_TOKENS = 64
PROBE, PROBE_PICTURE, PROBE_TOKENS = "probe", "photo_coffee.jpg", 3


def longest_conversation(opened: Opened, samples: Sequence[Sample]) -> int:
    """Tokens that the definition has to hold: of the longest conversation, with room for an answer to the user's own image."""
    longest = max(s.prompt.length(opened.family.patches) + len(s.golden.ids) for s in samples)
    return max(longest, min(opened.artifact.max_seq_len, longest + USER_ANSWER_TOKENS))


def golden_by_its_processor(opened: Opened, samples: list[Sample]) -> list[Sample]:
    """The golden samples that are not square, with the pixels of the checkpoint's own processor."""
    golden = [sample for sample in samples if sample.golden.kind not in (USER, PROBE)]
    return published_samples(opened.checkpoint, golden, large=opened.family.large)


def probe_sample(tokenizer: Tokenizer, family: Family, *, square: bool) -> Sample:
    """A picture of our own with a forced answer, for a checkpoint without golden data: layers, cache and threads are compared on it, and no
    check takes the answer for the model's."""
    picture = EMBEDDED / "images" / PROBE_PICTURE
    wanted = GoldenImage(PROBE, picture, "", PROBE, family.prompt.default_question, (), (), "")
    probe = load_sample(wanted, tokenizer, family, square=square)
    return replace(probe, golden=replace(probe.golden, ids=probe.prompt.after[:PROBE_TOKENS]))


def to_this_prompt(opened: Opened, sample: Sample, answered: Answered) -> Sample:
    """A sample whose answer was recorded to a prompt of another tokenizer: with fp32's margins for this one's. Raises `GoldenError` if fp32
    does not give that answer to this prompt."""
    golden = sample.golden
    if answered.favoured != tuple(golden.ids):
        rule, said = opened.tokenizer.rule.as_json(), opened.golden.prompt_rule
        raise GoldenError(
            f"the golden answer to {golden.name} was made with another tokenizer, and the fp32 model gives another answer with this one",
            got="prompts with "
            + (described(said) if said else "BOS in front, and nothing between the image and what follows"),
            expected=f"prompts with {described(rule)}",
            where=opened.golden.path,
            fix='answer the images again: python -m verifier.golden update --model DIR --reason "another tokenizer"',
        )
    return with_margins(sample, answered)


def user_sample(opened: Opened, definition: Definition) -> Sample:
    """The user's own image, with the fp32 model's answer as its golden one."""
    tokenizer = opened.tokenizer
    path = opened.request.image
    assert path is not None
    wanted = GoldenImage(path.name, path, "", USER, _question(opened), (), (), "")
    sample = load_sample(wanted, tokenizer, opened.family, square=opened.recipe.static_image_shape)
    room = min(
        USER_ANSWER_TOKENS,
        opened.artifact.max_seq_len - sample.prompt.length(opened.family.patches),
    )
    ids, margins = greedy_answer(definition, sample, ends=tokenizer.ends, room=room)
    answered = replace(wanted, ids=ids, margins=margins, text=tokenizer.decode(ids))
    return replace(sample, golden=answered)


def _question(opened: Opened) -> str:
    """What is asked about the user's image: nothing, as the published answer's prompt, where there is one."""
    if opened.expectation is not None:
        return ""
    return opened.golden.images[0].question if opened.golden.images else opened.family.prompt.default_question
