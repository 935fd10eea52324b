"""A bundle as a folder: `bundle.txt`, one item a line, and its arrays. It can be kept, moved and carried out elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from verifier.core.errors import RunnerError
from verifier.runner.constants import BUNDLE_FILE, BUNDLE_SCHEMA
from verifier.runner.protocol import ArgmaxOf, Array, Bundle, Call, OutputOf, Part, TraceRequest, program_hash


def save_bundle(bundle: Bundle, directory: Path) -> None:
    """Write a bundle into an existing folder: `bundle.txt`, and one `in_N_P.npy` for each input array. A program in the same
    folder is named alone, so that the folder can be moved; any other by its whole path."""
    near = bundle.pte.resolve().parent == directory.resolve()
    path = bundle.pte.name if near else bundle.pte.resolve()
    lines = [BUNDLE_SCHEMA, f"pte {program_hash(bundle.pte)} {bundle.pte.stat().st_size} {path}"]
    if bundle.threads is not None:
        lines.append(f"threads {bundle.threads}")
    if bundle.memory_bytes is not None:
        lines.append(f"memory {bundle.memory_bytes}")
    if bundle.trace is not None:
        lines.append(f"trace {bundle.trace.buffer_bytes}")
    written: dict[int, str] = {}  # an array that several calls are given is one file
    for number, call in enumerate(bundle.calls):
        lines.append(f"call {call.keep:d} {call.may_fail:d} {call.instance} {call.method}")
        for position, value in enumerate(call.inputs):
            if isinstance(value, OutputOf | ArgmaxOf):
                if not 0 <= value.call < number:
                    raise RunnerError(
                        "a call uses an output that does not exist yet", got=value, expected=f"a call before {number}"
                    )
                words = f"argmax {value.call}" if isinstance(value, ArgmaxOf) else f"output {value.call} {value.output}"
            else:
                name = written.setdefault(id(value), f"in_{number:05d}_{position}.npy")
                if not (directory / name).exists():
                    _save_array(np.array(value, order="C"), directory / name)
                words = f"array {name}"
            lines.append(f"in {words}")
        lines += [f"part {part.output} {part.axis} {part.length}" for part in call.further]
        lines += ["rows last"] if call.rows == "last" else []
    (directory / BUNDLE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")


def _save_array(array: Array, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def load_bundle(directory: Path, *, pte: Path | None = None) -> Bundle:
    """Read a bundle back; `pte` is where its program lies now, if not where the bundle says. A trace goes into the folder.

    Raises `RunnerError`, also for a program that is not as long as the bundle's: a file that was cut off on its way.
    """
    try:
        lines = (directory / BUNDLE_FILE).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        if lines[0] != BUNDLE_SCHEMA:
            raise RunnerError("unknown bundle schema", got=lines[0], expected=BUNDLE_SCHEMA, where=directory)
        bundle, size_bytes = _parse(lines[1:], directory)
    except (IndexError, KeyError, ValueError, OSError, TypeError) as error:
        raise RunnerError("the bundle cannot be read", got=error, where=directory) from error
    bundle = bundle if pte is None else replace(bundle, pte=pte)
    try:
        found_bytes = bundle.pte.stat().st_size
    except OSError as error:
        raise RunnerError("the bundle's program is not there", got=error, where=bundle.pte) from error
    if found_bytes != size_bytes:
        raise RunnerError("not the bundle's program", got=f"{found_bytes} bytes", expected=size_bytes, where=bundle.pte)
    return bundle


def recorded_hash(directory: Path) -> str:
    """SHA-256 of the program that a saved bundle is for. Raises `RunnerError`."""
    try:
        words = (
            (directory / BUNDLE_FILE).read_text(encoding="utf-8", errors="surrogateescape").splitlines()[1].split(" ")
        )
        return words[words.index("pte") + 1]
    except (IndexError, ValueError, OSError) as error:
        raise RunnerError("the bundle cannot be read", got=error, where=directory) from error


def _parse(lines: list[str], directory: Path) -> tuple[Bundle, int]:
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
        elif key == "rows" and rest == "last":
            calls[-1] = replace(calls[-1], rows="last")
        elif key in ("pte", "threads", "trace", "memory"):
            head[key] = rest
        else:
            raise ValueError(f"an item of kind {key!r}")
    _, size, path = head["pte"].split(" ", 2)
    numbers = {key: int(text) for key, text in head.items() if key != "pte"}
    trace = TraceRequest(directory, numbers["trace"]) if "trace" in numbers else None
    return Bundle(directory / path, tuple(calls), numbers.get("threads"), trace, numbers.get("memory")), int(size)


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
