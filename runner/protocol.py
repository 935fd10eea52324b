"""What goes to a runner and what comes back, as plain files without pickle.

A bundle is an ordered list of method calls on one loaded program, so that a KV-cache lives across them. An input is an
array, or the output of an earlier call: image tokens go from `vision_encoder` to `text_decoder` without leaving the
runner. A bundle's folder: `bundle.txt`, one item a line, and `in_N_P.npy`, which a runner without Python reads as easily.
A result's folder: `result.json`, one `NNNNN.npy` per kept output, one `NNNNN_K.npy` per further part, and the event
tracer's two files if it was on. Both can be kept, moved, carried out and judged later (`python -m verifier.runner`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from verifier.core.errors import RunnerError

Array = NDArray[Any]
Rows = Literal["all", "last"]
Outcome = Literal["ok", "refused", "failed", "crashed", "timeout", "memory"]
"""ok: every call returned. refused: the program did not load. failed: a call returned an error. crashed: the process
died. timeout: it did not end in time. memory: it wanted more than the bundle allows."""


@dataclass(frozen=True)
class OutputOf:
    """An output of call number `call` of the same bundle, the first unless said otherwise."""

    call: int
    output: int = 0


@dataclass(frozen=True)
class ArgmaxOf:
    """The index of the largest number in the last row of a call's first output, int64 [1, 1]: a greedy token."""

    call: int


@dataclass(frozen=True)
class Part:
    """Output number `output` of a call, its first `length` entries along `axis`: of a KV-cache, the rows in use."""

    output: int
    axis: int
    length: int


@dataclass(frozen=True)
class Call:
    """One method call, or `runner.constants.LOOP`. `keep` brings its first output back, `further` parts of others; an error of one that `may_fail` does
    not end the bundle. `instance` numbers the loading of the program that is called: each has its own memory. With `rows` "last", the first output
    is its last row alone, [1, N], for whoever uses it: logits [1, S, V] of all positions become those of the last."""

    method: str
    inputs: tuple[Array | OutputOf | ArgmaxOf, ...]
    keep: bool = True
    may_fail: bool = False
    instance: int = 0
    further: tuple[Part, ...] = ()
    rows: Rows = "all"


@dataclass(frozen=True)
class TraceRequest:
    """The event tracer's files, an ETDump and its debug buffer, go into `directory` of the caller's machine. A buffer that is
    too small for all tensors of all calls aborts the process."""

    directory: Path
    buffer_bytes: int


@dataclass(frozen=True)
class Bundle:
    """Calls on one freshly loaded program, or on several instances of it in one process. `memory_bytes` limits what the process
    may allocate; mapped files, as the program's weights are, do not count."""

    pte: Path
    calls: tuple[Call, ...]
    threads: int | None = None
    trace: TraceRequest | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Result:
    """What a runner brings back.

    `outputs` by call number, `further` parts by call and place, and the `errors` of calls that might fail. `call_s`: one
    time per finished call. `isa` and `cpu_features` are of the machine that ran it, emulated or not; `instructions` are its
    matrix instructions, tried out: nothing for a right one, else what is wrong with it; `in_use` are those
    that XNNPACK's chosen microkernels are made of; `conditions` are its temperature, free memory and the like, with units in the names.
    `operators` are those that the runtime has kernels for.
    """

    outcome: Outcome
    message: str
    outputs: dict[int, Array] = field(default_factory=dict, repr=False)
    errors: dict[int, str] = field(default_factory=dict)
    further: dict[tuple[int, int], Array] = field(default_factory=dict, repr=False)
    call_s: tuple[float, ...] = ()
    load_s: float = 0.0
    peak_rss_bytes: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    operators: tuple[str, ...] = field(default=(), repr=False)
    isa: str = ""
    cpu_features: tuple[str, ...] = ()
    instructions: dict[str, str] = field(default_factory=dict)
    in_use: tuple[str, ...] = ()
    conditions: dict[str, float] = field(default_factory=dict)

    @property
    def finished_calls(self) -> int:
        """How many calls returned."""
        return len(self.call_s)


class Runner(Protocol):
    """Anything that can carry out a bundle. Outcomes are results; `RunnerError` is kept for the runner's own failure."""

    @property
    def name(self) -> str:
        """As given to `--target`."""
        ...

    @property
    def isa(self) -> str:
        """Architecture of the machine that runs the program, emulated or not, as `uname -m` says it."""
        ...

    @property
    def at_once(self) -> int:
        """How many bundles it is sensible to have carried out at the same time."""
        ...

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


@lru_cache(maxsize=64)
def _sha256(path: Path, _bytes: int, _changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def program_hash(pte: Path) -> str:
    """SHA-256 of a program, computed once for a file that does not change. Raises `RunnerError` if it cannot be read."""
    try:
        facts = pte.stat()
        return _sha256(pte, facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise RunnerError("the program cannot be read", got=error, where=pte) from error
