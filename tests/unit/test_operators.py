"""Records of operators, nodes and backends: complete, one of each name, and what has none is refused by name."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.judging import results_of
from tests.support import EMBEDDED_PTE
from verifier.artifact.dtypes import PROGRAM, XNNPACK, program_name
from verifier.artifact.program import Artifact, open_artifact
from verifier.audit.inventory import take_inventory
from verifier.backends.calls import BACKENDS, census_of, graph_of, operands_of, written_by
from verifier.backends.xnnpack.nodes import NODES
from verifier.interpret.machine import Machine
from verifier.measures.program_facts import program_facts
from verifier.operators.bounds import exact
from verifier.operators.operator import Operator, Registry, UnknownOperationError, dtype_of
from verifier.operators.registry import OPERATORS, is_heavy


@pytest.mark.parametrize("record", [*OPERATORS, *NODES], ids=lambda record: record.name)
def test_record_is_complete(record: Any) -> None:
    """Semantics and bound are functions, and the source of the semantics is named."""
    assert callable(record.evaluate)
    assert callable(record.bound)
    assert record.source


def test_two_records_of_one_name_are_refused() -> None:
    """The second would replace the first in silence."""
    one = Operator("my::operator", lambda args, _outputs: (args[0],), exact)
    with pytest.raises(ValueError, match="two records of the operator my::operator"):
        Registry("operator", "here", [one, one])


def test_name_without_a_record_is_refused() -> None:
    """The message says what cannot be evaluated, where it is, and what can."""
    with pytest.raises(UnknownOperationError, match="cannot evaluate operator my::operator, only the") as caught:
        OPERATORS.get("my::operator", where="text_decoder, instruction 7")
    assert caught.value.where == "text_decoder, instruction 7"
    with pytest.raises(UnknownOperationError, match="cannot evaluate a tensor of dtype UINT16, only BYTE, "):
        dtype_of("UINT16")


def test_every_overload_of_heavy_work_is_heavy() -> None:
    """With a record and without one; what moves values is not."""
    assert all(map(is_heavy, ("aten::bmm.out", "aten::bmm.dtype_out", "aten::convolution.out", "aten::linear")))
    assert not any(map(is_heavy, ("aten::mul.out", "llama::custom_sdpa.out", "my::operator")))


def test_dtypes_are_those_of_torch_and_numpy() -> None:
    """One table: its three columns agree wherever they are filled."""
    for name, dtype in [*PROGRAM.items(), *XNNPACK.items()]:
        if dtype.torch is not None:
            assert getattr(torch, dtype.torch).itemsize == dtype.item_bytes, name
        if dtype.numpy is not None:
            assert torch.from_numpy(np.zeros(1, dtype.numpy)).dtype == getattr(torch, str(dtype.torch)), name
    assert all(dtype_of(program_name(name)) == getattr(torch, name) for name in ("float32", "int8", "int64", "bool"))


def _with_foreign_delegate() -> tuple[Artifact, int]:
    """The embedded program with its decoder's first delegate called CoreMLBackend, and the number of the instruction that calls it."""
    artifact = open_artifact(EMBEDDED_PTE)
    plan = artifact.plans["text_decoder"]
    step = next(s for s in plan.instructions if s.kind == "delegate")
    steps = tuple(replace(s, name="CoreMLBackend") if s is step else s for s in plan.instructions)
    return replace(
        artifact, plans=artifact.plans | {plan.name: replace(plan, instructions=steps)}, decoded={}
    ), step.index


def test_unknown_delegate_is_refused_by_name() -> None:
    """By interpreter and audit, in the same words; never read as XNNPACK's."""
    artifact, index = _with_foreign_delegate()
    plan = artifact.plans["text_decoder"]
    message = "cannot evaluate delegate CoreMLBackend, only XnnpackBackend is supported"
    with pytest.raises(UnknownOperationError, match=message) as caught:
        graph_of(artifact, plan, plan.instructions[index])
    assert caught.value.where == f"text_decoder, instruction {index}"
    with pytest.raises(UnknownOperationError, match=message):
        take_inventory(artifact)
    with pytest.raises(UnknownOperationError, match=message):
        Machine(artifact).call("text_decoder", [torch.zeros(1, 1, 256), torch.tensor([0])])


def test_unknown_delegate_is_no_fault_of_the_file() -> None:
    """Its nodes are not counted, and int8 tensors at its borders are not judged."""
    artifact, _ = _with_foreign_delegate()
    clean = open_artifact(EMBEDDED_PTE)
    nodes = [sum(n for kind, n in census_of(x)["text_decoder"].items() if "XNN" in kind) for x in (artifact, clean)]
    assert 0 < nodes[0] < nodes[1]
    (result,) = results_of("structure.quantization", SimpleNamespace(program=program_facts(artifact), subjects=None))
    assert result.verdict != "fail"


def test_backends_are_known_by_the_names_in_the_file() -> None:
    """The registry's name is the one that a program holds."""
    artifact = open_artifact(EMBEDDED_PTE)
    called = {s.name for plan in artifact.plans.values() for s in plan.instructions if s.kind == "delegate"}
    assert called == {backend.name for backend in BACKENDS}


def test_what_is_written_in_place_is_read_too() -> None:
    """Caches are operands of the instructions that write them, and no operand is the result alone."""
    artifact = open_artifact(EMBEDDED_PTE)
    plan = artifact.plans["text_decoder"]
    writes = [s for s in plan.instructions if s.name == "llama::update_cache.out"]
    assert writes
    for step in writes:
        assert written_by(step) == step.args[1]
        assert operands_of(artifact, plan, step)[:2] == step.args[:2]
        assert step.args[-1] not in operands_of(artifact, plan, step)
