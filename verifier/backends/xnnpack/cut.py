"""A delegate's payload cut behind one of its nodes, with the very constants of the file."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

from verifier.artifact.storage import Span, Storage
from verifier.backends.backend import Graph
from verifier.backends.quantization import PerChannel, PerTensor, Quantization
from verifier.backends.xnnpack.graph import INVALID_ID
from verifier.core import upstream

EXTERNAL_INPUT, EXTERNAL_OUTPUT = 1, 2  # XNN_VALUE_FLAG_EXTERNAL_INPUT and _OUTPUT


def cut_payload(payload: Span, storage: Storage, graph: Graph, node: int) -> tuple[bytes, dict[str, Span]]:
    """The delegate's payload cut behind a node, and the named data it uses: ExecuTorch's flatc takes it apart and together."""
    raw = bytes(storage.read(payload))
    offset, size, inline_offset, inline_size = struct.unpack_from("<IIIQ", raw, 10)
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(upstream.XNNPACK_GRAPH.resolve().read_bytes())
        binary.write_bytes(raw[offset : offset + size])
        upstream.FLATC_DECOMPILE.resolve()(folder, str(schema), str(binary), ["--raw-binary"])
        text = json.loads(binary.with_suffix(".json").read_text())
        keys = {
            c["named_key"]: storage.named[c["named_key"]] for c in text.get("constant_data", []) if c.get("named_key")
        }
        _cut(text, graph, node)
        binary.with_suffix(".json").write_text(json.dumps(text))
        upstream.FLATC_COMPILE.resolve()(folder, str(schema), str(binary.with_suffix(".json")))
        made = binary.read_bytes()
    padded = made + bytes(-len(made) % 16)
    start = 32
    head = struct.pack("<4x4sHIIIQ", b"XH00", 30, start, len(made), start + len(padded), inline_size)
    return head.ljust(start, b"\0") + padded + raw[inline_offset : inline_offset + inline_size], keys


def _cut(text: dict[str, Any], graph: Graph, node: int) -> None:
    """Leave out the nodes that follow, and make the node's value the only output."""
    target = graph.nodes[node].output
    text["xnodes"] = text["xnodes"][: node + 1]
    for entry, known in zip(text["xnodes"], graph.nodes, strict=False):
        if known.clamp is not None:
            entry["output_min_max"] = {"output_min": known.clamp[0], "output_max": known.clamp[1]}
    text["output_ids"] = [target]
    text["num_externs"] = len(graph.inputs) + 1
    for value in text["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        number = tensor.get("id_out", 0)
        _restore_scales(union, graph.values[number].quantization)
        if number == target:
            tensor["external_id"], tensor["flags"] = len(graph.inputs), EXTERNAL_OUTPUT
        elif number in graph.outputs:
            tensor["external_id"], tensor["flags"] = INVALID_ID, 0
        elif number in graph.inputs:
            tensor["external_id"], tensor["flags"] = graph.inputs.index(number), EXTERNAL_INPUT


def _restore_scales(union: dict[str, Any], quantization: Quantization) -> None:
    """flatc writes floats with six digits, which moves the rounding of int8; the exact ones take their place."""
    if isinstance(quantization, PerTensor):
        union["quant_params"]["scale"] = quantization.scale
    elif isinstance(quantization, PerChannel) and isinstance(quantization.scales, tuple):
        union["quant_params"]["scale"] = list(quantization.scales)
