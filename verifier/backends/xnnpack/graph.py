"""An XNNPACK delegate from its bytes: nodes, values, quantization parameters, constants.

Payload (executorch/backends/xnnpack/serialization): zeros, `XH00` at byte 4, header length u16, offset and size of the
graph u32 each, offset u32 and size u64 of inline constants; the graph is a FlatBuffer. Constants lie inline or, by key,
in the named data of the program.
"""

from __future__ import annotations

import math
import struct

from verifier.artifact.dtypes import XNNPACK
from verifier.artifact.flat import Record, read_flatbuffer
from verifier.artifact.schema import xnnpack_schema
from verifier.artifact.storage import Span, Storage
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor, PerToken, Quantization
from verifier.core.errors import ArtifactError

INVALID_ID = 0xFFFFFFFF
INLINE_LIMIT_BYTES = 64 << 20


_INPUTS = (
    "input_id",
    "input1_id",
    "input2_id",
    "input3_id",
    "input4_id",
    "input5_id",
    "filter_id",
    "bias_id",
    "query_id",
    "key_id",
    "value_id",
    "scale_id",
    "mask_id",
)


def _fail(what: str, where: str, *, got: object = None, expected: object = None) -> ArtifactError:
    fix = "export or copy the file again, with ExecuTorch 1.5"
    return ArtifactError(f"an XNNPACK delegate {what}", got=got, expected=expected, where=where, fix=fix)


def read_graph(payload: Span, storage: Storage, *, where: str) -> Graph:
    """Decode a delegate's payload. Raises `ArtifactError`, never reads constants."""
    head = bytes(storage.read(Span(payload.offset, min(30, payload.size))))
    if len(head) < 30 or head[4:8] != b"XH00":
        raise _fail("has no header", where, got=head[4:8], expected=b"XH00")
    offset, size, inline_offset, inline_size = struct.unpack_from("<IIIQ", head, 10)
    if offset + size > payload.size or inline_offset + inline_size > payload.size or size > INLINE_LIMIT_BYTES:
        raise _fail(
            "is larger than its segment", where, got=(offset, size, inline_offset, inline_size), expected=payload.size
        )
    data = memoryview(bytes(storage.read(Span(payload.offset + offset, size))))
    record = read_flatbuffer(data, xnnpack_schema(), "XNNGraph", what=f"an XNNPACK delegate ({where})")
    inline = Span(payload.offset + inline_offset, inline_size)
    places = [_constant_place(entry, inline, storage, where) for entry in record.constant_data]
    values = {}
    for entry in record.xvalues:
        value = _value(entry.xvalue_union, places, where)
        values[value.id] = value
    nodes = tuple(_node(number, entry, values, where) for number, entry in enumerate(record.xnodes))
    externals = [*record.input_ids, *record.output_ids]
    if any(id not in values for id in externals):
        raise _fail("has inputs or outputs that are no values", where, got=externals)
    by_number = sorted(record.input_ids, key=lambda id: values[id].external or 0)
    return Graph(
        nodes, values, tuple(by_number), tuple(sorted(record.output_ids, key=lambda id: values[id].external or 0))
    )


def _constant_place(entry: Record, inline: Span, storage: Storage, where: str) -> Span:
    if entry.named_key:
        if entry.named_key not in storage.named:
            raise _fail("uses named data that the program does not have", where, got=entry.named_key)
        return storage.named[entry.named_key]
    if entry.offset + entry.size > inline.size and entry.offset != 0xFFFFFFFFFFFFFFFF:
        raise _fail("has constants outside its payload", where, got=(entry.offset, entry.size), expected=inline.size)
    return Span(inline.offset + entry.offset, entry.size) if entry.size else Span(0, 0)


def _value(union: Record | None, places: list[Span], where: str) -> GraphValue:
    if union is None:
        raise _fail("has an empty value", where)
    tensor = union.tensor_value if union.kind == "XNNQuantizedTensorValue" else union
    quantization = _quantization(union.quant_params, places, where) if union.kind == "XNNQuantizedTensorValue" else None
    if tensor is None:
        raise _fail("has a quantized value without a tensor", where)
    dtype = tensor.datatype.removeprefix("xnn_datatype_")
    dims = tuple(tensor.dims)
    if dtype not in XNNPACK or len(dims) > 8 or math.prod(dims) > 1 << 40:
        raise _fail("has a value that cannot be", where, got=f"{dtype}{list(dims)[:10]}")
    constant = None
    if tensor.constant_buffer_idx:
        if tensor.constant_buffer_idx >= len(places):
            raise _fail(
                "names a constant that does not exist",
                where,
                got=tensor.constant_buffer_idx,
                expected=f"< {len(places)}",
            )
        constant = places[tensor.constant_buffer_idx]
    external = None if tensor.external_id == INVALID_ID else int(tensor.external_id)
    value = GraphValue(int(tensor.id_out), dtype, dims, quantization, constant, external)
    if constant is not None and constant.size < value.size_bytes:
        raise _fail("has a constant with too few bytes", where, got=constant.size, expected=value.size_bytes)
    return value


def _quantization(record: Record | None, places: list[Span], where: str) -> Quantization:
    if record is None:
        return None
    if record.kind == "PerTensorQuant":
        return PerTensor(float(record.scale), int(record.zero_point))
    if record.kind == "PerTokenDynamicQuant":
        return PerToken(int(record.num_nonbatch_dims))
    per_group = record.kind == "PerChannelGroupQuant"
    stored = _scales(record, places, 2 if per_group else 4, where)
    if not per_group:
        return PerChannel(
            int(record.channel_dim), stored or tuple(record.scale), record.num_scales or len(record.scale)
        )
    if stored is None or record.group_size < 1:
        raise _fail("has no group scales among its constants", where)
    return PerGroup(int(record.channel_dim), int(record.group_size), stored, int(record.num_scales))


def _scales(record: Record, places: list[Span], item_bytes: int, where: str) -> Span | None:
    if not record.scale_buffer_idx:
        return None
    if record.scale_buffer_idx >= len(places):
        raise _fail("names scales that do not exist", where, got=record.scale_buffer_idx)
    place = places[record.scale_buffer_idx]
    if place.size < record.num_scales * item_bytes:
        raise _fail("has too few scales", where, got=place.size // item_bytes, expected=record.num_scales)
    return Span(place.offset, record.num_scales * item_bytes)


def _node(number: int, entry: Record, values: dict[int, GraphValue], where: str) -> Node:
    union = entry.xnode_union
    if union is None:
        raise _fail("has an empty node", where, got=number)
    names = [name for name in union.fields if name in _INPUTS]
    inputs = tuple(None if (id := union.fields[name]) == INVALID_ID else int(id) for name in names)
    if "Concatenate" in union.kind:
        inputs = inputs[: int(union.kind[-1])]
    output = int(union.fields.get("output_id", union.fields.get("output_value_id", INVALID_ID)))
    for id in (*inputs, output):
        if id is not None and id not in values:
            raise _fail(f"has a node {union.kind} that uses no value", where, got=id)
    limits = entry.output_min_max
    return Node(
        index=number,
        kind=union.kind,
        inputs=inputs,
        output=output,
        attributes={name: value for name, value in union.fields.items() if name not in _INPUTS and name != "output_id"},
        clamp=None if limits is None else (float(limits.output_min), float(limits.output_max)),
    )
