"""Numbers in the file that no band would miss: scales between delegates, factors of the attention."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.faults.judging import results_of
from tests.support import EMBEDDED_PTE
from verifier.artifact.program import open_artifact
from verifier.artifact.storage import Span
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint
from verifier.faults.fault import Fault, Work
from verifier.faults.in_program import activation_scale, vision_attention_scale, zero_point_misread
from verifier.faults.surgery import change_bytes
from verifier.measures.program_facts import program_facts


def test_sound_program_reads_what_it_wrote() -> None:
    """All eleven of the embedded program."""
    (result,) = results_of(
        "structure.quantization", SimpleNamespace(program=program_facts(open_artifact(EMBEDDED_PTE)), subjects=None)
    )
    assert result.verdict == "pass"
    assert result.message.startswith("11 int8 tensors")


@pytest.mark.parametrize("fault", [zero_point_misread, activation_scale], ids=lambda fault: fault.name)
def test_misread_tensor_is_named(fault: Fault, tmp_path: Path) -> None:
    """A zero point 40 off, a scale 2 % off: the reader and what both say."""
    work = Work(tmp_path, Path(shutil.copy(EMBEDDED_PTE, tmp_path / "victim.pte")), EMBEDDED)
    layer = 2 if fault is zero_point_misread else 1
    reader = work.constants[f"vision_encoder.tower.layers.{layer}.fc1.weight"].instruction
    fault.inject(work)
    (result,) = results_of(
        "structure.quantization", SimpleNamespace(program=program_facts(open_artifact(work.pte)), subjects=None)
    )
    assert (result.verdict, result.where and result.where.instruction) == ("fail", reader)
    assert "1 of 11 int8 tensors" in result.message


def test_attention_scale_of_the_tower_is_looked_at(tmp_path: Path) -> None:
    """One factor 1 % off in eight: its instruction, and what is due."""
    geometry = open_checkpoint().geometry
    clean = SimpleNamespace(program=program_facts(open_artifact(EMBEDDED_PTE)), geometry=geometry, subjects=None)
    (result,) = results_of("structure.scalars", clean)
    assert (result.verdict, result.message.split()[0]) == ("pass", "8")
    work = Work(tmp_path, Path(shutil.copy(EMBEDDED_PTE, tmp_path / "victim.pte")), EMBEDDED)
    vision_attention_scale.inject(work)
    (result,) = results_of(
        "structure.scalars",
        SimpleNamespace(program=program_facts(open_artifact(work.pte)), geometry=geometry, subjects=None),
    )
    steps = [s.index for s in work.clean.plans["vision_encoder"].instructions if s.name == "aten::mul.Scalar_out"]
    assert (result.verdict, result.where and result.where.instruction) == ("fail", steps[2])


def test_delegate_that_cannot_be_read_is_not_verified(tmp_path: Path) -> None:
    """Its payload overwritten: scales and census cannot be compared, and both say where it is."""
    pte = Path(shutil.copy(EMBEDDED_PTE, tmp_path / "victim.pte"))
    payload = open_artifact(pte).plans["vision_encoder"].delegates[0].payload
    change_bytes(pte, Span(payload.offset + 40, 100), lambda raw: raw ^ 0x5A)
    evidence = SimpleNamespace(
        program=program_facts(open_artifact(pte)), tolerances=SimpleNamespace(census={}), subjects=None
    )
    for check_id in ("structure.quantization", "structure.census"):
        (result,) = results_of(check_id, evidence)
        assert result.verdict == "error"
        assert result.message.startswith("a delegate cannot be read: ")
        assert "vision_encoder, instruction" in result.message
