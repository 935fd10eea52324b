"""Programs of one or two operators, run on ExecuTorch's runtime and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from verifier.artifact.header import read_header
from verifier.artifact.program import Artifact, read_program
from verifier.backends.calls import graph_of
from verifier.core import upstream
from verifier.export.lean import lean_lowering
from verifier.ladder.limits import excess
from verifier.ladder.records import Compared, Replay
from verifier.ladder.replay import Replayer
from verifier.ladder.trace import CallTrace, read_trace
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, Call, TraceRequest

Once = Callable[[str, Callable[[Path], None]], Path]
Program = tuple[nn.Module, tuple[Tensor, ...]]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        """The function."""
        return self.function(*given)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exporting(programs: dict[str, Program], delegated: bool) -> Callable[[Path], None]:
    """Writes programs, one method each, into a folder, and the traces of one call of each."""

    def export(folder: Path) -> None:
        from executorch.exir import to_edge_transform_and_lower

        upstream.CUSTOM_OPERATORS.resolve()
        upstream.QUANTIZED_PATTERNS.resolve()  # embeddings of int8 tables
        exported = {name: torch.export.export(module, given) for name, (module, given) in programs.items()}
        partitioner: Any = (
            {name: [upstream.XNNPACK_PARTITIONER.resolve()()] for name in programs} if delegated else None
        )
        configured = upstream.EDGE_CONFIG.resolve()(_check_ir_validity=False)
        with lean_lowering():
            edge = to_edge_transform_and_lower(exported, partitioner=partitioner, compile_config=configured)
        with (folder / "model.pte").open("wb") as file:
            edge.to_executorch().write_to_file(file)
        calls = tuple(Call(name, tuple(x.numpy() for x in given)) for name, (_, given) in programs.items())
        bundle = Bundle(folder / "model.pte", calls, trace=TraceRequest(folder, 64 << 20))
        result = LocalRunner().run(bundle, timeout_s=600)
        assert result.outcome == "ok", result.message

    return export


@dataclass(frozen=True)
class Spoilt:
    """A traced tensor as a faulty kernel would have left it."""

    contents: np.ndarray

    def array(self) -> np.ndarray:
        """Its contents."""
        return self.contents


def artifact_in(folder: Path) -> Artifact:
    """The file in a folder; it is no LLaVA, so it is not opened as one."""
    path = folder / "model.pte"
    header = read_header(path)
    storage, plans = read_program(path, header)
    return Artifact(path, "", {}, header, storage, plans)


@dataclass(frozen=True)
class Traced:
    """Programs as the runtime ran them, and how its results compare."""

    artifact: Artifact
    programs: dict[str, Program]
    traces: list[CallTrace]

    def compared(self, name: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> list[Compared]:
        """What the replay says of the results of one program."""
        return list(self.replay(name, change).compared)

    def replay(self, name: str, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Replay:
        """The replay of one program, its last traced result changed if asked."""
        trace = dict(self.traces[list(self.programs).index(name)])
        if change is not None:
            plan = self.artifact.plans[name]
            step = next(s for s in reversed(plan.instructions) if s.index in trace)
            place = len(graph_of(self.artifact, plan, step).inputs) if step.kind == "delegate" else 0
            tensors: list[Any] = list(trace[step.index])
            tensors[place] = Spoilt(change(tensors[place].array()))
            trace[step.index] = tuple(tensors)
        replayer = Replayer(self.artifact)
        replayer.call(name, [x.clone() for x in self.programs[name][1]], trace)
        return replayer.finish()


def fails(records: list[Compared]) -> bool:
    """Whether a result is shown to be wrong."""
    return any(excess(record) > 1 for record in records)


def passes(records: list[Compared]) -> bool:
    """Whether all results are shown to be right."""
    return not fails(records) and not any(record.unexplained for record in records)


def run(once: Once, name: str, programs: dict[str, Program], *, delegated: bool) -> Traced:
    """Programs as the runtime runs them, exported once."""
    folder = once(name, exporting(programs, delegated))
    return Traced(artifact_in(folder), programs, read_trace(folder))
