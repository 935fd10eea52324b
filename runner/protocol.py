"""What goes to a runner and what comes back, as plain files without pickle.

A bundle is an ordered list of method calls on one loaded program, so that a KV-cache lives across them. An input is an
array, or the output of an earlier call: image tokens go from `vision_encoder` to `text_decoder` without leaving the
runner. Files: `bundle.txt`, one item a line, and `in_N_P.npy`, which a runner without Python reads as easily; back come `result.json`, one `NNNNN.npy` per kept
output, and one `NNNNN_K.npy` per further part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.errors import RunnerError

SCHEMA = "runner.bundle/3"
Array = NDArray[Any]
Outcome = Literal["ok", "refused", "failed", "crashed", "timeout"]
"""ok: every call returned. refused: the program did not load. failed: a call returned an error. crashed: the process
died. timeout: it did not end in time."""


@dataclass(frozen=True)
class OutputOf:
    """An output of call number `call` of the same bundle, the first unless said otherwise."""

    call: int
    output: int = 0


@dataclass(frozen=True)
class ArgmaxOf:
    """The index of the largest number in the last dimension of a call's first output, int64 [1, 1]: a greedy token."""

    call: int


@dataclass(frozen=True)
class Part:
    """Output number `output` of a call, its first `length` entries along `axis`: of a KV-cache, the rows in use."""

    output: int
    axis: int
    length: int


@dataclass(frozen=True)
class Call:
    """One method call. `keep` brings its first output back, `further` parts of others; an error of one that `may_fail` does
    not end the bundle. `instance` numbers the loading of the program that is called: each has its own memory."""

    method: str
    inputs: tuple[Array | OutputOf | ArgmaxOf, ...]
    keep: bool = True
    may_fail: bool = False
    instance: int = 0
    further: tuple[Part, ...] = ()


@dataclass(frozen=True)
class TraceRequest:
    """The event tracer's files, an ETDump and its debug buffer, go into `directory`. A buffer that is too small for all
    tensors of all calls aborts the process."""

    directory: Path
    buffer_bytes: int


ETDUMP_FILE, BUFFER_FILE = "trace.etdp", "trace.bin"


@dataclass(frozen=True)
class Bundle:
    """Calls on one freshly loaded program, or on several instances of it in one process."""

    pte: Path
    calls: tuple[Call, ...]
    threads: int | None = None
    trace: TraceRequest | None = None


@dataclass(frozen=True)
class Result:
    """What a runner brings back.

    `outputs` by call number, `further` parts by call and place, and the `errors` of calls that might fail. `call_s`: one
    time per finished call. `isa` and `cpu_features` are of the machine that ran it, emulated or not.
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

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle."""
        ...


def save_bundle(bundle: Bundle, directory: Path) -> None:
    """Write a bundle into an existing folder: `bundle.txt`, and one `in_N.npy` for each input array."""
    lines = [SCHEMA, f"pte {bundle.pte.resolve()}"]
    if bundle.threads is not None:
        lines.append(f"threads {bundle.threads}")
    if bundle.trace is not None:
        lines.append(f"trace {bundle.trace.buffer_bytes} {bundle.trace.directory.resolve()}")
    written: dict[int, str] = {}  # an array that several calls are given is one file
    for number, call in enumerate(bundle.calls):
        lines.append(f"call {call.keep:d} {call.may_fail:d} {call.instance} {call.method}")
        for position, value in enumerate(call.inputs):
            if isinstance(value, (OutputOf, ArgmaxOf)):
                if not 0 <= value.call < number:
                    raise RunnerError(
                        "a call uses an output that does not exist yet", got=value.call, expected=f"0..{number - 1}"
                    )
                words = f"argmax {value.call}" if isinstance(value, ArgmaxOf) else f"output {value.call} {value.output}"
            else:
                name = written.setdefault(id(value), f"in_{number:05d}_{position}.npy")
                if not (directory / name).exists():
                    _save_array(np.array(value, order="C"), directory / name)
                words = f"array {name}"
            lines.append(f"in {words}")
        lines += [f"part {part.output} {part.axis} {part.length}" for part in call.further]
    odd = next((line for line in lines if "\n" in line), None)
    if odd is not None:
        raise RunnerError("a name with a line break cannot stand in a bundle", got=odd)
    (directory / "bundle.txt").write_text("\n".join(lines) + "\n")


def _save_array(array: Array, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle back. Raises `RunnerError`."""
    try:
        lines = (directory / "bundle.txt").read_text().splitlines()
        if lines[0] != SCHEMA:
            raise RunnerError("unknown bundle schema", got=lines[0], expected=SCHEMA, where=directory)
        return _parse(lines[1:], directory)
    except (IndexError, KeyError, ValueError, OSError, TypeError) as error:
        raise RunnerError("the bundle cannot be read", got=error, where=directory) from error


def _parse(lines: list[str], directory: Path) -> Bundle:
    head: dict[str, str] = {}
    calls: list[Call] = []
    for line in lines:
        key, _, rest = line.partition(" ")
        if key == "call":
            keep, may_fail, instance, method = rest.split(" ", 3)
            calls.append(Call(method, (), keep != "0", may_fail != "0", int(instance)))
        elif key == "in":
            calls[-1] = replace(calls[-1], inputs=(*calls[-1].inputs, _input(rest, directory)))
        elif key == "part":
            output, axis, length = (int(word) for word in rest.split())
            calls[-1] = replace(calls[-1], further=(*calls[-1].further, Part(output, axis, length)))
        elif key in ("pte", "threads", "trace"):
            head[key] = rest
        else:
            raise ValueError(f"an item of kind {key!r}")
    trace = None
    if "trace" in head:
        size, _, folder = head["trace"].partition(" ")
        trace = TraceRequest(Path(folder), int(size))
    return Bundle(Path(head["pte"]), tuple(calls), int(head["threads"]) if "threads" in head else None, trace)


def _input(text: str, directory: Path) -> Array | OutputOf | ArgmaxOf:
    kind, _, rest = text.partition(" ")
    if kind == "array":
        if Path(rest).name != rest:
            raise ValueError(f"an array outside the bundle: {rest}")
        array: Array = np.load(directory / rest, allow_pickle=False)
        return array
    words = [int(word) for word in rest.split()]
    if kind == "argmax":
        return ArgmaxOf(*words)
    if kind == "output":
        return OutputOf(*words)
    raise ValueError(f"an input of kind {kind!r}")


def output_path(directory: Path, call: int) -> Path:
    """Where the output of a call lies."""
    return directory / f"{call:05d}.npy"


def further_path(directory: Path, call: int, place: int) -> Path:
    """Where a further part of a call lies."""
    return directory / f"{call:05d}_{place}.npy"


def load_further(directory: Path, calls: Sequence[Call]) -> dict[tuple[int, int], Array]:
    """Parts of further outputs that were written completely."""
    return {
        (number, place): np.load(path, allow_pickle=False)
        for number, call in enumerate(calls)
        for place in range(len(call.further))
        if (path := further_path(directory, number, place)).is_file()
    }


def load_outputs(directory: Path, calls: Sequence[int]) -> dict[int, Array]:
    """Kept outputs that were written completely."""
    return {
        call: np.load(path, allow_pickle=False) for call in calls if (path := output_path(directory, call)).is_file()
    }
