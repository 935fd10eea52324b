"""The `quantized` rung of the encoder of images: the eager definition, whose operators round to int8 where those of the file do.

Nothing here knows a recipe. Which operators are in int8, and with which scales, is read from the delegates; what the operators are
applied to, and in which order, is the definition's. An operator of the file is matched with one of the definition by the last linear or convolution
before it, whose weight has a name. Integers of weights and biases are those that the checkpoint gives at the file's scales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from verifier.artifact.plan import Instruction, Plan
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Storage
from verifier.audit.run import Audit
from verifier.backends.backend import Graph, Node
from verifier.backends.calls import graph_of
from verifier.backends.quantization import PerTensor, PerToken
from verifier.backends.xnnpack.arithmetic import QuantizedRows, dequantize, quantize, quantize_rows
from verifier.backends.xnnpack.context import Context, Operand
from verifier.backends.xnnpack.run import run_node
from verifier.families.conventions import ENCODER
from verifier.ladder.quantized import SECOND_TIE_WIDTH
from verifier.operators.operator import UnknownOperationError

Key = tuple[str, str, int]
"""Name of the last weight that was multiplied, kind of operator, and how many of its kind came between."""
LINEAR, CONVOLUTION, ADD, MULTIPLY, CONCATENATE = "linear", "convolution", "add", "multiply", "concatenate"
_NODES = {
    "XNNFullyConnected": LINEAR,
    "XNNConv2d": CONVOLUTION,
    "XNNAdd": ADD,
    "XNNMultiply": MULTIPLY,
    **{f"XNNConcatenate{count}": CONCATENATE for count in (2, 3, 4, 5)},
}
_KERNELS = {"aten::add": ADD, "aten::mul": MULTIPLY, "aten::cat": CONCATENATE}
_FUNCTIONS = {
    "linear": LINEAR,
    "conv2d": CONVOLUTION,
    **dict.fromkeys(("add", "__add__", "__radd__"), ADD),
    **dict.fromkeys(("mul", "__mul__", "__rmul__"), MULTIPLY),
    **dict.fromkeys(("cat", "concat"), CONCATENATE),
}


@dataclass(frozen=True)
class Site:
    """A node of the file that computes in int8. `follows` is the place of the operand that the last linear or convolution gave, if it is known."""

    graph: Graph
    node: Node
    follows: int | None


def find_sites(artifact: Artifact, audit: Audit) -> dict[Key, Site]:
    """The operators of the encoder that compute in int8. Raises `UnknownOperationError` for one that cannot be placed, and `ArtifactError`."""
    names = {
        (constant.instruction, constant.node): parameter.name.removeprefix(f"{ENCODER}.")
        for constant, parameter in zip(audit.inventory, audit.parameters, strict=True)
        if parameter is not None and constant.method == ENCODER and constant.role in ("linear", "convolution")
    }
    plan = artifact.plans[ENCODER]
    found: dict[Key, Site] = {}
    anchor, passed = "", Counter[str]()
    for step in plan.instructions:
        for graph, node in _operators(artifact, plan, step):
            kind = _KERNELS[step.name.partition(".")[0]] if node is None else _NODES[node.kind]
            if kind in (LINEAR, CONVOLUTION):
                assert node is not None
                anchor, passed = names.get((step.index, node.index), ""), Counter()
            key = (anchor, kind, passed[kind])
            passed[kind] += 1
            if graph is None or node is None or not _in_int8(graph, node):
                continue
            if not anchor:
                raise _unplaced(f"{node.kind} in int8 of instruction {step.index}, node {node.index}")
            found[key] = Site(graph, node, _follows(graph, node))
    return found


def _operators(artifact: Artifact, plan: Plan, step: Instruction) -> Iterator[tuple[Graph | None, Node | None]]:
    """The sums, products and joins of an instruction; (None, None) for one outside of a delegate."""
    if step.kind == "kernel" and step.name.partition(".")[0] in _KERNELS:
        yield None, None
    if step.kind == "kernel" and step.name.startswith("quantized_decomposed::"):
        raise _unplaced(f"{step.name} of instruction {step.index}")
    if step.kind == "delegate":
        graph = graph_of(artifact, plan, step)
        require_placed(graph, step)
        yield from ((graph, node) for node in graph.nodes if node.kind in _NODES)


def _unplaced(what: str) -> UnknownOperationError:
    return UnknownOperationError(
        f"cannot find what {what} is in the eager model: no int8 operator of the file may be left out"
    )


def _in_int8(graph: Graph, node: Node) -> bool:
    ids = (*node.inputs, node.output)
    return any(isinstance(graph.values[id].quantization, PerTensor | PerToken) for id in ids if id is not None)


def require_placed(graph: Graph, step: Instruction) -> None:
    """A value that is rounded to int8 is an operand, or moves; one that is only converted back is a rounding that would be left out."""
    for node in graph.nodes:
        target = graph.values[node.output].quantization
        users = [one.kind for one in graph.nodes if node.output in one.inputs]
        back = bool(users) and all(kind == "XNNConvert" for kind in users)
        if node.kind == "XNNConvert" and isinstance(target, PerTensor) and back:
            raise _unplaced(f"the rounding to int8 of instruction {step.index}, node {node.index}")


def _follows(graph: Graph, node: Node) -> int | None:
    """Which operand comes from a linear or a convolution without an operator between."""
    makers = {one.output: one for one in graph.nodes}

    def origin(id: int | None) -> Node | None:
        maker = makers.get(id) if id is not None else None
        return origin(maker.inputs[0]) if maker is not None and maker.kind not in _NODES else maker

    origins = [origin(id) for id in node.inputs]
    products = (LINEAR, CONVOLUTION)
    return next((at for at, one in enumerate(origins) if one is not None and _NODES[one.kind] in products), None)


class TowerRung:
    """The eager encoder with the file's int8 operators; without any it is the fp32 definition. `used` are the operators that were met since it was
    last emptied."""

    def __init__(self, encoder: object, sites: dict[Key, Site], storage: Storage) -> None:
        if sites and not isinstance(encoder, nn.Module):
            raise _unplaced("int8")
        parameters = dict(encoder.named_parameters()) if isinstance(encoder, nn.Module) else {}
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.sites, self.storage = sites, storage
        self.met: set[Key] = set()

    @contextmanager
    def rounding(self, *, flip_ties: bool = False) -> Iterator[_Rounded]:
        """Inside, the encoder's operators round as the file's do; with every near-tie the other way, if that is asked."""
        mode = _Rounded(self, flip_ties=flip_ties)
        with mode:
            yield mode
        self.met |= mode.used

    def require_all_met(self) -> None:
        """Raise `UnknownOperationError` if an int8 operator of the file was not met in the eager model."""
        left = sorted(self.sites.keys() - self.met)
        if left:
            name, kind, number = left[0]
            raise _unplaced(f"{kind} {number} behind {name}, one of {len(left)} of {len(self.sites)},")


class _Rounded(TorchFunctionMode):
    """Replaces the functions that `sites` name."""

    def __init__(self, rung: TowerRung, *, flip_ties: bool) -> None:
        super().__init__()
        self.rung, self.flip_ties = rung, flip_ties
        self.used: set[Key] = set()
        self._anchor, self._passed = "", Counter[str]()
        self._last: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call of a function of torch."""
        kwargs = kwargs or {}
        kind = _FUNCTIONS.get(getattr(func, "__name__", ""))
        if kind is None:
            return func(*args, **kwargs)
        if kind in (LINEAR, CONVOLUTION):
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self._anchor, self._passed = self.rung.names.get(id(weight), ""), Counter()
        key = (self._anchor, kind, self._passed[kind])
        self._passed[kind] += 1
        site = self.rung.sites.get(key)
        made = func(*args, **kwargs) if site is None else self._in_int8(site, kind, func, args, kwargs)
        if site is not None:
            self.used.add(key)
        if kind in (LINEAR, CONVOLUTION):
            self._last = made
        return made

    def _in_int8(self, site: Site, kind: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        if kind == CONCATENATE:
            parts = [self._on_grid(site, place, x) for place, x in enumerate(args[0])]
            made: Tensor = func(parts, *args[1:], **kwargs)
            return made
        given: Sequence[Any] = args[:2]
        if kind == LINEAR:
            given = args[:1]
        if kind == CONVOLUTION:
            given = (args[0].permute(0, 2, 3, 1),)
        elif kind in (ADD, MULTIPLY) and site.follows is not None and given[1 - site.follows] is self._last:
            given = (given[1], given[0])
        made = self._run(site, [x if isinstance(x, Tensor) else torch.tensor([float(x)]) for x in given])
        return made.permute(0, 3, 1, 2) if kind == CONVOLUTION else made

    def _on_grid(self, site: Site, place: int, x: Tensor) -> Tensor:
        """An operand as its int8 stands for it."""
        q = self._stored(site, place, x)
        range = site.graph.values[_id(site, place)].quantization
        assert isinstance(range, PerTensor) and isinstance(q, Tensor)
        return dequantize(q, scale=range.scale, zero_point=range.zero_point)

    def _stored(self, site: Site, place: int, x: Tensor) -> Operand:
        """An operand as the node is given it."""
        range = site.graph.values[_id(site, place)].quantization
        if isinstance(range, PerToken):
            return quantize_rows(x, tie_width=SECOND_TIE_WIDTH, flip_ties=self.flip_ties)
        if not isinstance(range, PerTensor):
            return x
        if self.flip_ties:
            x = _flipped(x, range)
        return quantize(x, scale=range.scale, zero_point=range.zero_point)

    def _run(self, site: Site, given: Sequence[Tensor]) -> Tensor:
        contents = {_id(site, place): self._stored(site, place, x) for place, x in enumerate(given)}
        try:
            result = run_node(site.node, Context(site.graph, self.rung.storage, contents))
        except RuntimeError as error:  # torch's, of shapes
            sizes = [list(x.shape) for x in given]
            raise UnknownOperationError(
                f"cannot evaluate {site.node.kind} on operands of the eager model's sizes {sizes}: {error}"
            ) from error
        assert not isinstance(result, QuantizedRows)
        range = site.graph.values[site.node.output].quantization
        if not isinstance(range, PerTensor):
            return result
        return dequantize(result, scale=range.scale, zero_point=range.zero_point)


def _id(site: Site, place: int) -> int:
    id = site.node.inputs[place]
    assert id is not None
    return id


def _flipped(x: Tensor, range: PerTensor) -> Tensor:
    """Numbers whose near-ties, in steps of a range, lie on the other side."""
    steps = x * (torch.tensor(1.0) / torch.tensor(range.scale, dtype=torch.float32))
    nearest = steps.round()
    rest = steps - nearest
    tied = 0.5 - rest.abs() < SECOND_TIE_WIDTH
    return torch.where(tied, (nearest + rest.sign()) * range.scale, x)
