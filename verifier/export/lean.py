"""A contained work-around for ExecuTorch 1.5's slow lowering: skip work that cannot change anything.

Five places dominate the export of a program with many small delegates, and do work that leaves no trace in the result:
- `XNNPACKPassManager.transform` runs 17 passes over every delegate, each ending in a re-trace, although most look for
  operators (batch norm, PReLU, upsampling, ...) that a LLaVA does not have. A pass is skipped where none of its
  operators occurs; a pass that is not in the table always runs.
- `ExportedProgram.run_decompositions` re-traces a whole program for every partitioner, although nothing is left to
  decompose after the first. It is skipped under the condition that ExecuTorch itself uses elsewhere: the program is
  functional already, and no operator of the table occurs in it.
- `NodeSource` copies the history of a node at every re-trace, so that its cost grows with the number of passes; the
  history is only ever read, and sharing it is enough.
- torchao's quantize and dequantize operators have no shape function of their own: every re-trace computes them in
  symbolic arithmetic, a dozen operators each, to learn that the output has the input's shape.
- HQQ passes over a whole weight up to 20 times, and allocates it anew each time: `verifier/export/hqq.py` finds the same scales in parts.
The bytes of the result do not change: `tests/gate/test_export.py` exports both ways and compares. `plain=True`, or a
version of ExecuTorch in which these names are gone, switches it off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from verifier.core import upstream
from verifier.core.errors import UpstreamError
from verifier.export.hqq import hqq_scale_only
from verifier.export.lean_partition import lean_partitioning, replaced

# Pass -> fragments of the operator names without which it leaves a graph as it is.
_TRIGGERS: dict[str, tuple[str, ...]] = {
    "XNNPACKRemoveCloneOpsTransform": ("clone", "dim_order"),
    "DimOrderOpsRevertPass": ("dim_order",),
    "ConvertToUpsampleBilinear2d": ("upsample", "aten.index"),
    "ConvertToSDPAPass": ("softmax", "scaled_dot"),
    "FuseBatchNormPass": ("batch_norm",),
    "DecomposeBatchNorm": ("batch_norm",),
    "FuseActivationPass": ("relu", "hardtanh"),
    "DecomposeConcatenate": ("aten.cat",),
    "RemoveGetItemPass": ("max_pool2d", "aten.max"),
    "InsertPadQDQPass": ("constant_pad",),
    "Conv1dUnsqueezePass": ("convolution",),
    "PReLUReshapePass": ("prelu",),
}
_FUNCTIONAL = "_verifier_is_functional"


def _operator_names(graph_module: Any) -> str:
    nodes = graph_module.graph.nodes
    return " ".join(str(getattr(node.target, "__name__", node.target)) for node in nodes if node.op == "call_function")


def _needed(pass_type: type, names: str) -> bool:
    triggers = _TRIGGERS.get(pass_type.__name__)
    return triggers is None or any(trigger in names for trigger in triggers)


def _lean_node_source(make: Any) -> Any:
    def lean_init(self: Any, node: Any, pass_name: str = "", action: Any = None) -> None:
        make(self, None, pass_name, action)
        if node:
            self.node_info = self.NodeInfo(name=node.name, target=str(node.target), graph_id=id(node.graph))
            self.from_node = list(node.meta.get("from_node", ()))

    return lean_init


def _shape_of_input(fake: Any, compute: Any, dtype_argument: int | None) -> Any:
    """For a tensor of the class `fake`, an empty one of its shape instead of the arithmetic; anything else is computed."""
    from torch import float32

    def lean_compute(tensor: Any, *arguments: Any) -> Any:
        if type(tensor) is not fake:
            return compute(tensor, *arguments)
        dtype = float32 if dtype_argument is None else arguments[dtype_argument]
        return tensor.new_empty(tensor.shape, dtype=dtype)

    return lean_compute


def hqq_in_parts(compute: Any) -> Any:
    """torchao's HQQ by `hqq_scale_only`, with the same arguments and results; what that does not know is left to `compute`."""

    def lean_hqq(weight: Any, block_size: Any, low: int, high: int, **options: Any) -> Any:
        bits = high.bit_length() + 1
        if (
            options
            or weight.dim() != 2
            or block_size[0] != 1
            or (low, high) != (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        ):
            return compute(weight, block_size, low, high, **options)
        integers, scales = hqq_scale_only(weight.detach(), bits=bits, group_size=block_size[1])
        return integers, scales.to(weight.dtype)

    return lean_hqq


@contextmanager
def lean_lowering(*, plain: bool = False) -> Iterator[None]:
    """Lower without superfluous re-traces inside the block. Not for use from several threads."""
    import torch
    from torch.export import ExportedProgram

    try:
        passes, contains = upstream.XNNPACK_PASSES.resolve(), upstream.CONTAINS_OPERATOR.resolve()
        node_source, primitives = upstream.NODE_SOURCE.resolve(), upstream.QUANT_PRIMITIVES.resolve()
        fake, hqq = upstream.FAKE_TENSOR.resolve(), upstream.HQQ.resolve()
    except UpstreamError:
        plain = True
    if plain:
        yield
        return

    transform, decompose = passes.transform, ExportedProgram.run_decompositions
    quantize, dequantize = (getattr(primitives, name) for name in upstream.QUANT_PRIMITIVES.uses)
    # sizes of symbolic tensors are asked for, never decomposed, although the table names the operator
    keeps = {torch.ops.aten.sym_size.int}

    def lean_transform(self: Any) -> Any:
        names = _operator_names(self.exported_program.graph_module)
        # linears are made from other operators on the way, and never one of the triggers
        self.passes = [p for p in self.passes if _needed(p, names)]
        return transform(self)

    def lean_decompositions(self: Any, decomp_table: Any = None, **rest: Any) -> Any:
        done = getattr(self, _FUNCTIONAL, False)
        if done and decomp_table is not None:
            operators = {op for op in decomp_table if op not in keeps}
            if not contains(self.graph_module, operators):
                return self
        made = decompose(self, decomp_table, **rest)
        object.__setattr__(made, _FUNCTIONAL, True)
        return made

    with (
        lean_partitioning(),
        replaced(
            (passes, "transform", lean_transform),
            (ExportedProgram, "run_decompositions", lean_decompositions),
            (hqq, upstream.HQQ.uses[0], hqq_in_parts(getattr(hqq, upstream.HQQ.uses[0]))),
            (node_source, "__init__", _lean_node_source(node_source.__init__)),
            (primitives, "_quantize_affine_no_dtype_cast", _shape_of_input(fake, quantize, None)),
            (primitives, "_dequantize_affine_no_dtype_check", _shape_of_input(fake, dequantize, 5)),
        ),
    ):
        yield
