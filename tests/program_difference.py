"""Two exports of one model side by side: the same structure, and how far their stored numbers are apart.

Calibration runs in fp32 with the kernels of the exporting machine, so activation ranges differ by rounding from one CPU to
another, and with them scales and the integers stored in those scales. Everything else is the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.artifact.dtypes import PROGRAM, XNNPACK
from verifier.artifact.plan import Plan, TensorValue
from verifier.artifact.program import Artifact, open_artifact
from verifier.artifact.storage import Span
from verifier.backends.backend import Graph, GraphValue
from verifier.backends.calls import graph_of
from verifier.backends.quantization import PerChannel, PerGroup, PerTensor


@dataclass
class ProgramDifference:
    """`structure` lists what cannot be compared; `worst_step` is the largest difference of two stored integers, `worst_float`
    that of two stored scales or fp32 constants, relative to the larger one. `worst_calibrated` is that of two scales of a whole
    tensor, which calibration finds for activations, and of the int32 biases that are stored in their units, relative to the
    largest and beyond the step that rounding may cost."""

    structure: list[str] = field(default_factory=list)
    worst_step: int = 0
    worst_float: float = 0.0
    worst_calibrated: float = 0.0

    def same(self, what: str, actual: object, expected: object) -> bool:
        """Record a structural difference; whether there is none."""
        if actual != expected:
            self.structure.append(f"{what}: {str(actual)[:80]} for {str(expected)[:80]}")
        return actual == expected

    def calibrated(self, actual: Any, expected: Any, *, step: int = 0) -> None:
        """Record how far two arrays are apart that follow from calibration."""
        a, e = (np.asarray(x, np.float64) for x in (actual, expected))
        apart = np.maximum(np.abs(a - e).max(initial=0.0) - step, 0.0)
        largest = max(np.abs(a).max(initial=0.0), np.abs(e).max(initial=0.0))
        relative = float(apart / largest) if largest else 0.0
        self.worst_calibrated = max(self.worst_calibrated, relative if np.isfinite(relative) else np.inf)

    def numbers(self, actual: Any, expected: Any) -> None:
        """Record how far two arrays are apart."""
        a, e = (np.asarray(x) for x in (actual, expected))
        if np.issubdtype(a.dtype, np.floating):
            off = (a != e) & ~(np.isnan(a) & np.isnan(e))
            a, e = a[off].astype(np.float64), e[off].astype(np.float64)
            apart = np.abs(a - e) / np.maximum(np.abs(a), np.abs(e))
            apart[~np.isfinite(apart)] = np.inf  # only one of them is infinite or no number
            self.worst_float = max(self.worst_float, float(apart.max(initial=0.0)))
        else:
            self.worst_step = max(self.worst_step, int(np.abs(a.astype(np.int64) - e.astype(np.int64)).max(initial=0)))


def compare_programs(actual: Path, expected: Path) -> ProgramDifference:
    """Compare every instruction, EValue, delegate and constant of two programs. Raises `ArtifactError`."""
    pair = _Pair(open_artifact(actual), open_artifact(expected), ProgramDifference())
    if pair.found.same("methods", list(pair.ours.plans), list(pair.theirs.plans)):
        for name, plan in pair.ours.plans.items():
            pair.plans(plan, pair.theirs.plans[name])
    return pair.found


@dataclass(frozen=True)
class _Pair:
    """Two programs under comparison; what each method finds goes into `found`."""

    ours: Artifact
    theirs: Artifact
    found: ProgramDifference

    def plans(self, a: Plan, b: Plan) -> None:
        where, same = a.name, self.found.same
        steps = [[(s.kind, s.name, s.args) for s in plan.instructions] for plan in (a, b)]
        alike = same(f"instructions of {where}", *steps)
        alike &= same(f"memory of {where}", a.arenas_bytes, b.arenas_bytes)
        if not same(f"EValues of {where}", len(a.values), len(b.values)) or not alike:
            return
        for number, (x, y) in enumerate(zip(a.values, b.values, strict=True)):
            if isinstance(x, float) and isinstance(y, float):
                self.found.numbers(x, y)
            elif isinstance(x, TensorValue) and isinstance(y, TensorValue):
                facts = [(v.dtype, v.sizes, v.dim_order, v.dynamic, v.place, v.constant is None) for v in (x, y)]
                if same(f"EValue {number} of {where}", *facts):
                    self.stored(x.dtype, x.constant, y.constant)
            else:
                same(f"EValue {number} of {where}", x, y)
        for one, other in zip(a.instructions, b.instructions, strict=True):
            if one.kind == "delegate":
                at = f"{where}, instruction {one.index}"
                self.graphs(at, graph_of(self.ours, a, one), graph_of(self.theirs, b, other))

    def graphs(self, where: str, a: Graph, b: Graph) -> None:
        same = self.found.same
        nodes = [[(n.kind, n.inputs, n.output, n.attributes, n.clamp) for n in graph.nodes] for graph in (a, b)]
        if not same(f"nodes of {where}", *nodes) or not same(f"values of {where}", list(a.values), list(b.values)):
            return
        for number, x in a.values.items():
            y = b.values[number]
            facts = [(v.dtype, v.dims, v.external, type(v.quantization), v.constant is None) for v in (x, y)]
            if same(f"value {number} of {where}", *facts):
                self.quantization(x, y)
                self.stored(x.dtype, x.constant, y.constant)

    def quantization(self, x: GraphValue, y: GraphValue) -> None:
        p, q = x.quantization, y.quantization
        if isinstance(p, PerTensor) and isinstance(q, PerTensor):
            self.found.calibrated(p.scale, q.scale)
            self.found.numbers(p.zero_point, q.zero_point)
        elif isinstance(p, PerGroup) and isinstance(q, PerGroup):
            self.stored("bf16", p.scales, q.scales)
        elif isinstance(p, PerChannel) and isinstance(q, PerChannel):
            self.found.numbers(_scales(self.ours, p), _scales(self.theirs, q))

    def stored(self, dtype: str, a: Span | None, b: Span | None) -> None:
        """Contents of two constants of one dtype."""
        if a is not None and b is not None and self.found.same("bytes of a constant", a.size, b.size):
            raws = [np.array(artifact.storage.read(span)) for artifact, span in ((self.ours, a), (self.theirs, b))]
            known = (PROGRAM | XNNPACK).get(dtype)
            read_as = np.uint8 if known is None or known.numpy in (None, np.bool_) else known.numpy
            one, other = (raw.view(read_as) for raw in raws)
            if dtype == "qint32":
                self.found.calibrated(one, other, step=1)
            else:
                self.found.numbers(one, other)


def _scales(artifact: Artifact, quantization: PerChannel) -> Any:
    held = quantization.scales
    return artifact.storage.read(held).view(np.float32) if isinstance(held, Span) else np.asarray(held, np.float32)
