"""How a program is called: recognized by what its methods declare, refused by name if it is not known, and made into calls."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import CALLER, EMBEDDED_PTE, OPTIMUM_CALLER, OPTIMUM_PTE, UPSTREAM_PTE
from verifier.artifact.program import Artifact, TensorFacts, open_artifact
from verifier.core.errors import ArtifactError, CheckpointError
from verifier.families.conventions import (
    CONVENTIONS,
    DECODER,
    EMBEDDING,
    ENCODER,
    EXECUTORCH_LLAVA,
    OPTIMUM,
    ROLES,
    Convention,
    pieces,
    recognize,
)
from verifier.families.driver import Caller, Script, caller_of, chunk_sizes, normalized, splice
from verifier.families.registry import open_checkpoint, open_family
from verifier.gather.opening import _require_same_model
from verifier.measures.paired_calls import PairedCalls
from verifier.measures.program_facts import expected_signatures
from verifier.measures.prompts import chunks_of
from verifier.runner import constants

PROGRAMS = {EMBEDDED_PTE: EXECUTORCH_LLAVA, UPSTREAM_PTE: EXECUTORCH_LLAVA, OPTIMUM_PTE: OPTIMUM}


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    """llava_tiny's program."""
    return open_artifact(EMBEDDED_PTE)


@pytest.mark.parametrize("pte", PROGRAMS, ids=lambda pte: pte.stem)
def test_programs_keep_to_the_convention_that_they_are_recognized_by(pte: object) -> None:
    """The exact signatures for the checkpoint, at the numbers of tokens that a call of the file takes."""
    program = open_artifact(pte)  # type: ignore[arg-type]
    assert recognize(program) is PROGRAMS[pte]  # type: ignore[index]
    expected = expected_signatures(program, open_family(open_checkpoint(), recognize(program)))
    for role in ROLES:
        assert program.methods[role].inputs == expected[role].inputs
        assert program.methods[role].outputs == (expected[role].output,)


@pytest.mark.parametrize("role", ROLES)
def test_a_program_without_a_method_is_none_of_the_family(artifact: Artifact, role: str) -> None:
    """The refusal names the method, and what there is."""
    lacking = replace(artifact, methods={name: m for name, m in artifact.methods.items() if name != role})
    with pytest.raises(ArtifactError, match=f"no method {role}"):
        recognize(lacking)


@pytest.mark.parametrize(
    ("role", "inputs"),
    [
        (ENCODER, (TensorFacts("FLOAT", (1, 1, 3, 56, 56), False),)),
        (ENCODER, (TensorFacts("BYTE", (1, 3, 336, 336), False),)),
        (ENCODER, (TensorFacts("FLOAT", (3, 336, 336), True),)),
        (EMBEDDING, (TensorFacts("INT", (1, 768), True),)),
        (DECODER, (TensorFacts("FLOAT", (1, 768, 256), True),)),
        (DECODER, (TensorFacts("FLOAT", (1, 768, 256), True), TensorFacts("LONG", (1, 768), True))),
        (DECODER, ()),
        (DECODER, (TensorFacts("FLOAT", (1, 768, 256), True), 3)),
    ],
)
def test_another_convention_is_not_understood(artifact: Artifact, role: str, inputs: tuple[TensorFacts, ...]) -> None:
    """Pictures in two batches, bytes in a batch, ids of int32, no position, a number: refused with the signature and what is known."""
    odd = replace(artifact.methods[role], inputs=inputs)
    with pytest.raises(ArtifactError, match=f"calling convention of {role} is not known") as raised:
        recognize(replace(artifact, methods=artifact.methods | {role: odd}))
    assert f"{role}({', '.join(map(str, inputs))})" in str(raised.value)
    assert all(one.shown in str(raised.value) for one in CONVENTIONS)


def test_methods_of_two_conventions_are_not_understood(artifact: Artifact) -> None:
    """optimum's encoder in ours: the signatures of all three are shown."""
    foreign = open_artifact(OPTIMUM_PTE).methods[ENCODER]
    with pytest.raises(ArtifactError, match="belong to different ones") as raised:
        recognize(replace(artifact, methods=artifact.methods | {ENCODER: foreign}))
    assert all(role in str(raised.value) for role in ROLES)


def test_names_and_words_tell_conventions_apart() -> None:
    """No two have one name, none is shown like another."""
    assert len({one.name for one in CONVENTIONS}) == len({one.shown for one in CONVENTIONS}) == len(CONVENTIONS)


@pytest.mark.parametrize("size", [(336, 336), (336, 251), (97, 131), (335, 335)])
def test_an_app_pads_and_normalizes_as_programs_do_inside(size: tuple[int, int]) -> None:
    """The same bits as the reference's."""
    picture = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    encoder = open_family(open_checkpoint()).definition(max_len=8).encoder
    given = normalized(picture, OPTIMUM_CALLER.pixels)
    expected = encoder.normalize(torch.from_numpy(picture))
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, expected.numpy())
    assert torch.equal(encoder.tokens(torch.from_numpy(given)), encoder.tokens(torch.from_numpy(picture)))


def test_llava_main_normalizes_with_the_same_numbers() -> None:
    """It has no checkpoint to read them from."""
    assert (CALLER.pixels.mean, CALLER.pixels.std) == (constants.PIXEL_MEAN, constants.PIXEL_STD)


def test_calls_follow_the_convention() -> None:
    """A picture's bytes or its pixels, one position or that of each token, whole outputs or last rows."""
    picture = np.zeros((3, 336, 252), np.uint8)
    made = {}
    for caller in (CALLER, OPTIMUM_CALLER):
        script = Script(caller)
        splice(script, ((1, 5, 6), None), [picture], patches=576)
        encode, _, text, image = script.calls
        shapes = [np.shape(call.inputs[-1]) for call in (encode, text, image)]
        made[caller.convention.name] = (shapes, text.rows, np.asarray(image.inputs[1])[:2].tolist())
    assert made[EXECUTORCH_LLAVA.name] == ([(3, 336, 252), (1,), (1,)], "all", [3])
    assert made[OPTIMUM.name] == ([(1, 3, 336, 336), (3,), (576,)], "last", [3, 4])


def test_a_picture_that_is_shown_again_is_the_same_array() -> None:
    """A bundle holds it once, whatever is made of it."""
    script, picture = Script(OPTIMUM_CALLER), np.zeros((3, 336, 252), np.uint8)
    for shown in (picture, picture, picture.copy()):
        script.encode(shown)
    given = [call.inputs[0] for call in script.calls]
    assert given[0] is given[1]
    assert given[0] is not given[2]


def test_caller_of_the_files() -> None:
    """How many tokens a call takes is read from the file."""
    family = open_family(open_checkpoint())
    found = [caller_of(open_artifact(pte), family) for pte in PROGRAMS]
    assert [(one.embedded, one.decoded, one.text) for one in found] == [(768, 768, 768), (84, 768, 84), (767, 767, 767)]
    assert found[0] == CALLER
    assert found[2] == OPTIMUM_CALLER


def test_text_in_pieces_is_scripted_without_gap() -> None:
    """Positions go on, the last call is kept, and what a check expects is what is scripted."""
    script, segments = Script(replace(CALLER, text=84)), (tuple(range(100)), None, tuple(range(170)))
    spliced = splice(script, segments, [np.zeros((3, 336, 336), np.uint8)], patches=576)
    sizes = chunk_sizes(segments, patches=576, text=84)
    assert sizes == [84, 16, 576, 84, 84, 2]
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    assert list(chunks_of(script.calls, patches=576)) == list(zip(starts, sizes, strict=True))
    kept = [number for number, call in enumerate(script.calls) if call.method == DECODER and call.keep]
    assert kept == [spliced.logits] == [len(script.calls) - 1]
    assert list(pieces(84, 84)) == [84]
    assert list(pieces(0, 84)) == []


@pytest.mark.parametrize("caller", [CALLER, OPTIMUM_CALLER])
def test_a_chunk_that_a_call_does_not_take_goes_in_in_pieces(caller: Caller) -> None:
    """Of 768 tokens; one that may fail is asked as it is."""
    paired = PairedCalls(Script(caller))
    last = paired.feed(np.zeros((768, 4), np.float32))
    asked = paired.feed(np.zeros((800, 4), np.float32), may_fail=True)
    sizes = [np.shape(call.inputs[0])[1] for call in paired.script.calls]
    assert sizes == ([768, 800] if caller is CALLER else [767, 1, 800])
    assert (last, asked) == (len(sizes) - 2, len(sizes) - 1)


def test_a_third_convention_is_its_fields() -> None:
    """What a record says is enough for signature and calls: normalized pixels with a start position."""
    third = Convention("a third", pixels="normalized", positions="start", logits="all")
    caller = replace(CALLER, convention=third)
    assert caller.image(np.zeros((3, 20, 30), np.uint8)).shape == (1, 3, 336, 336)
    assert (caller.positions(7, 5).tolist(), caller.rows) == ([7], "last")
    assert "FLOAT[1, 3, H, H]" in third.shown


@pytest.mark.parametrize(
    ("other", "refused"),
    [
        ({"patches": 4, "width": 128, "vocabulary": 320}, True),
        ({"patches": 4, "width": 128}, False),
        ({"vocabulary": 320}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("pte", [OPTIMUM_PTE, UPSTREAM_PTE], ids=["optimum", "upstream"])
def test_a_program_of_another_model_is_refused(pte: Path, other: dict[str, int], refused: bool) -> None:
    """If nothing of its sizes is the checkpoint's; a size that is wrong by itself is left to structure.signatures."""
    artifact = open_artifact(pte)
    sizes = replace(open_family(open_checkpoint()).sizes(768), **other)
    family: Any = SimpleNamespace(sizes=lambda _longest: sizes)
    with pytest.raises(CheckpointError, match="of another model") if refused else nullcontext():
        _require_same_model(artifact, family)
