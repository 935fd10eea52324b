"""What goes to a runner and what comes back, as plain files without pickle.

A bundle is an ordered list of method calls on one loaded program, so that a KV-cache lives across them. An input is an
array, or the output of an earlier call: image tokens go from `vision_encoder` to `text_decoder` without leaving the
runner. Files: `bundle.json` and `inputs.npz`; back come `result.json`, one `NNNNN.npy` per kept
output, and one `NNNNN_K.npy` per further part.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from verifier.errors import RunnerError

SCHEMA = "runner.bundle/2"
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
    time per finished call.
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

    def run(self, bundle: Bundle, *, timeout_s: float) -> Result:
        """Carry out a bundle."""
        ...


def save_bundle(bundle: Bundle, directory: Path) -> None:
    """Write a bundle's two files into an existing folder."""
    arrays: dict[str, Array] = {}
    calls = []
    for number, call in enumerate(bundle.calls):
        inputs: list[dict[str, Any]] = []
        for position, value in enumerate(call.inputs):
            if isinstance(value, (OutputOf, ArgmaxOf)):
                if not 0 <= value.call < number:
                    raise RunnerError(
                        "a call uses an output that does not exist yet", got=value.call, expected=f"0..{number - 1}"
                    )
                inputs.append({"kind": "argmax" if isinstance(value, ArgmaxOf) else "output"} | asdict(value))
            else:
                arrays[f"{number}_{position}"] = np.array(value, order="C")
                inputs.append({"array": f"{number}_{position}"})
        plain = {name: getattr(call, name) for name in ("method", "keep", "may_fail", "instance")}
        calls.append(plain | {"inputs": inputs, "further": [asdict(part) for part in call.further]})
    text: dict[str, Any] = {
        "schema": SCHEMA,
        "pte": str(bundle.pte.resolve()),
        "threads": bundle.threads,
        "calls": calls,
    }
    if bundle.trace is not None:
        text["trace"] = {"directory": str(bundle.trace.directory), "buffer_bytes": bundle.trace.buffer_bytes}
    (directory / "bundle.json").write_text(json.dumps(text))
    with (directory / "inputs.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_bundle(directory: Path) -> Bundle:
    """Read a bundle back. Raises `RunnerError`."""
    try:
        text = json.loads((directory / "bundle.json").read_text())
        if text["schema"] != SCHEMA:
            raise RunnerError("unknown bundle schema", got=text["schema"], expected=SCHEMA, where=directory)
        with np.load(directory / "inputs.npz", allow_pickle=False) as arrays:
            calls = tuple(
                Call(
                    str(call["method"]),
                    tuple(_input(i, arrays) for i in call["inputs"]),
                    bool(call["keep"]),
                    bool(call["may_fail"]),
                    int(call["instance"]),
                    tuple(Part(int(p["output"]), int(p["axis"]), int(p["length"])) for p in call["further"]),
                )
                for call in text["calls"]
            )
        trace = text.get("trace")
        wanted = TraceRequest(Path(trace["directory"]), int(trace["buffer_bytes"])) if trace else None
        return Bundle(Path(text["pte"]), calls, text["threads"], wanted)
    except (KeyError, ValueError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise RunnerError("the bundle cannot be read", got=error, where=directory) from error


def _input(text: dict[str, Any], arrays: Any) -> Array | OutputOf | ArgmaxOf:
    if "array" in text:
        array: Array = arrays[text["array"]]
        return array
    return ArgmaxOf(int(text["call"])) if text["kind"] == "argmax" else OutputOf(int(text["call"]), int(text["output"]))


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
