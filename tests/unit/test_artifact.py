"""The reader of programs: right where ExecuTorch's own deserializer is right, and unhurt where a file is hostile."""

from __future__ import annotations

import json
import random
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench.fuzz_reader import mutate, read_everything, small_program
from tests.program_difference import ProgramDifference, compare_programs
from tests.support import EMBEDDED_PTE
from verifier.artifact.flat import read_flatbuffer
from verifier.artifact.header import read_header
from verifier.artifact.nibbles import pack_nibbles, unpack_nibbles
from verifier.artifact.plan import ListValue, TensorValue
from verifier.artifact.program import open_artifact, read_program
from verifier.artifact.schema import parse_schema, program_schema, xnnpack_schema
from verifier.artifact.storage import Span
from verifier.backends import calls
from verifier.backends.quantization import PerGroup
from verifier.backends.xnnpack.graph import read_graph
from verifier.core import upstream
from verifier.core.errors import ArtifactError
from verifier.faults.surgery import change_bytes, graph_of, write_scalar


def test_program_agrees_with_executorchs_deserializer() -> None:
    """Every method, EValue and instruction of the embedded program, read twice."""
    schema, read = upstream.PROGRAM_CLASSES.resolve(), upstream.DESERIALIZE_PROGRAM.resolve()
    header = read_header(EMBEDDED_PTE)
    theirs = read(EMBEDDED_PTE.read_bytes()[: header.program_bytes])
    storage, plans = read_program(EMBEDDED_PTE, header)
    assert [plan.name for plan in theirs.execution_plan] == list(plans)
    for plan in theirs.execution_plan:
        ours = plans[plan.name]
        assert (plan.inputs, plan.outputs) == (list(ours.inputs), list(ours.outputs))
        assert plan.non_const_buffer_sizes == list(ours.arenas_bytes)
        for evalue, value in zip(plan.values, ours.values, strict=True):
            _check_value(evalue.val, value)
        calls = [instruction.instr_args for chain in plan.chains for instruction in chain.instructions]
        for call, step in zip(calls, ours.instructions, strict=True):
            assert isinstance(call, schema.KernelCall | schema.DelegateCall)
            assert list(step.args) == call.args
    assert {entry.key for entry in theirs.named_data or []} == set(storage.named)


def _check_value(theirs: object, ours: object) -> None:
    schema = upstream.PROGRAM_CLASSES.resolve()
    if isinstance(theirs, schema.Tensor):
        assert isinstance(ours, TensorValue)
        assert (tuple(theirs.sizes), schema.ScalarType(theirs.scalar_type).name) == (ours.sizes, ours.dtype)
        place = theirs.allocation_info
        expected = None if place is None else (place.memory_id, place.memory_offset_low)
        assert ours.place == expected
    elif isinstance(theirs, schema.IntList | schema.TensorList):
        assert isinstance(ours, ListValue)
        assert list(ours.items) == theirs.items
    elif isinstance(theirs, schema.Int):
        assert ours == theirs.int_val
    elif isinstance(theirs, schema.Double):
        assert ours == float(theirs.double_val)


def test_delegate_agrees_with_flatc(tmp_path: Path) -> None:
    """A 4-bit linear's graph, read by ExecuTorch's flatc and by us."""
    artifact = open_artifact(EMBEDDED_PTE)
    plan = artifact.plans["text_decoder"]
    payload = plan.delegates[2].payload
    raw = bytes(artifact.storage.read(payload))
    offset, size = struct.unpack_from("<II", raw, 10)
    (tmp_path / "graph.bin").write_bytes(raw[offset : offset + size])
    schema = tmp_path / "schema.fbs"
    schema.write_bytes(upstream.XNNPACK_GRAPH.resolve().read_bytes())
    upstream.FLATC_DECOMPILE.resolve()(str(tmp_path), str(schema), str(tmp_path / "graph.bin"), ["--raw-binary"])
    theirs = json.loads((tmp_path / "graph.json").read_text())
    graph = read_graph(payload, artifact.storage, where="test")
    assert [node["xnode_union_type"] for node in theirs["xnodes"]] == [node.kind for node in graph.nodes]
    assert len(theirs["xvalues"]) == len(graph.values)
    weights = next(v for v in graph.values.values() if isinstance(v.quantization, PerGroup))
    assert isinstance(weights.quantization, PerGroup)
    found = next(v["xvalue_union"] for v in theirs["xvalues"] if "PerChannelGroupQuant" in str(v))
    assert found["tensor_value"]["dims"] == list(weights.dims)
    assert found["quant_params"]["group_size"] == weights.quantization.group_size


def test_difference_of_two_programs_is_measured(tmp_path: Path) -> None:
    """None against itself; a weight by its steps; a scale relative to itself; another graph as structure."""
    assert compare_programs(EMBEDDED_PTE, EMBEDDED_PTE) == ProgramDifference()
    artifact = open_artifact(EMBEDDED_PTE)
    plan = artifact.plans["vision_encoder"]
    graphs = [(s, calls.graph_of(artifact, plan, s)) for s in plan.instructions if s.kind == "delegate"]
    step, weight = next((s, v) for s, g in graphs for v in g.values.values() if v.constant and v.dtype == "qint8")
    flat = graph_of(artifact, "vision_encoder", step.index)
    quantized = [v.xvalue_union for v in flat.root.xvalues if v.xvalue_union.kind == "XNNQuantizedTensorValue"]
    given = quantized[0].quant_params
    assert weight.constant is not None

    def wounded(name: str) -> Path:
        return Path(shutil.copy(EMBEDDED_PTE, tmp_path / name))

    change_bytes(wounded("weight"), Span(weight.constant.offset + 7, 1), lambda byte: byte ^ 4)
    assert compare_programs(tmp_path / "weight", EMBEDDED_PTE) == ProgramDifference(worst_step=4)
    write_scalar(wounded("scale"), flat.field(given, "PerTensorQuant", "scale"), given.scale * 1.01)
    assert compare_programs(tmp_path / "scale", EMBEDDED_PTE).worst_calibrated == pytest.approx(0.01 / 1.01, rel=1e-4)
    sizes = flat.items(quantized[0].tensor_value, "XNNTensorValue", "dims")
    write_scalar(wounded("graph"), (sizes, "I"), quantized[0].tensor_value.dims[0] + 1)
    assert compare_programs(tmp_path / "graph", EMBEDDED_PTE).structure


def test_int4_is_low_nibble_first_with_zero_point_8() -> None:
    """Two a byte, the low nibble first, stored plus 8."""

    packed = np.array([[0x80], [0xF7]], np.uint8)
    for low_first, expected in ((True, [[-8, 0], [-1, 7]]), (False, [[0, -8], [7, -1]])):
        integers = unpack_nibbles(packed, low_first=low_first)
        assert integers.tolist() == expected
        assert pack_nibbles(integers, low_first=low_first).tolist() == packed.tolist()


def test_opening_reads_no_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a file costs its program: nothing is read through the storage."""
    from verifier.artifact.storage import Storage

    def refuse(self: Storage, span: Span) -> object:
        raise AssertionError(f"read {span}")

    monkeypatch.setattr(Storage, "read", refuse)
    assert set(read_program(EMBEDDED_PTE, read_header(EMBEDDED_PTE))[1]) >= {"vision_encoder", "text_decoder"}


def _program_of(values: int, items: int) -> bytes:
    """A small buffer whose `values` EValues are all one IntList of `items` numbers."""
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.StartVector(8, items, 8)
    for _ in range(items):
        builder.PrependInt64(1)
    numbers = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, numbers, 0)
    shared = builder.EndObject()
    builder.StartObject(2)
    builder.PrependUint8Slot(0, 7, 0)
    builder.PrependUOffsetTRelativeSlot(1, shared, 0)
    value = builder.EndObject()
    builder.StartVector(4, values, 4)
    for _ in range(values):
        builder.PrependUOffsetTRelative(value)
    vector = builder.EndVector()
    builder.StartObject(10)
    builder.PrependUOffsetTRelativeSlot(2, vector, 0)
    plan = builder.EndObject()
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(plan)
    plans = builder.EndVector()
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(1, plans, 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


def test_vectors_that_share_their_content_are_refused() -> None:
    """60,000 lists that are all the same 30,000 numbers: 1.8 billion items from 0.5 MB, refused after linear work."""
    data = _program_of(60_000, 30_000)
    assert len(data) < 600_000
    with pytest.raises(ArtifactError, match="more content than bytes"):
        read_flatbuffer(memoryview(data), program_schema(), "Program", what="the program")


def test_shared_content_within_reason_is_read() -> None:
    """The same buffer, small: sharing itself is no fault."""
    record = read_flatbuffer(memoryview(_program_of(3, 5)), program_schema(), "Program", what="the program")
    assert [v.val.items for v in record.execution_plan[0].values] == [[1] * 5] * 3


def test_schema_of_the_wheel_is_read_whole() -> None:
    """Every table and union member that ExecuTorch's schemas declare."""
    assert len(xnnpack_schema().unions["XNodeUnion"]) == 47
    assert xnnpack_schema().unions["XNodeUnion"][1] == ("XNNAdd", "_XNNNode2x1")
    assert program_schema().enums["ScalarType"][1][15] == "BFLOAT16"


def test_schema_with_an_unknown_type_is_refused() -> None:
    """A schema that grew is said, not guessed."""
    from verifier.core.errors import VerifierError

    with pytest.raises(VerifierError, match="unknown type"):
        parse_schema("table A { b: Mystery; }")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_program_is_read_or_refused(seed: int, tmp_path: Path) -> None:
    """A sample of `make fuzz`, which runs 50,000."""
    data, places = small_program()
    path = tmp_path / "mutated.pte"
    path.write_bytes(mutate(bytearray(data), places, random.Random(f"test/{seed}")))
    try:
        assert read_everything(path) >= 0
    except ArtifactError as error:
        assert str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(min_size=0, max_size=600), at=st.integers(0, 400))
def test_noise_in_the_program_is_read_or_refused(noise: bytes, at: int, tmp_path: Path) -> None:
    """Any bytes anywhere in the first kilobyte."""
    path = tmp_path / "noise.pte"
    if not path.exists():
        shutil.copy(EMBEDDED_PTE, path)
    with path.open("r+b") as file:
        original = file.read(1200)
        file.seek(at)
        file.write(noise)
    try:
        read_everything(path)
    except ArtifactError as error:
        assert str(error)
    finally:
        with path.open("r+b") as file:
            file.write(original)


def test_too_many_tables_are_refused() -> None:
    """A quarter of a million EValues in a large buffer stay within the byte budget, and are still too many."""
    data = _program_of(260_000, 3) + bytes(20_000_000)
    with pytest.raises(ArtifactError, match="more than 250,000 tables"):
        read_flatbuffer(memoryview(data), program_schema(), "Program", what="the program")
