"""A result as a folder: `result.json`, and the arrays that a bundle asked for. What a child writes, and what is kept for later."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from verifier.core.errors import RunnerError
from verifier.core.records import read_record
from verifier.runner.constants import RESULT_FILE
from verifier.runner.protocol import Array, Call, Outcome, Result

_LARGEST_BYTES = 64 << 20


def output_path(directory: Path, call: int) -> Path:
    """Where the output of a call lies."""
    return directory / f"{call:05d}.npy"


def further_path(directory: Path, call: int, place: int) -> Path:
    """Where a further part of a call lies."""
    return directory / f"{call:05d}_{place}.npy"


def save_array(array: Array, path: Path) -> None:
    """Write one output."""
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_fields(directory: Path, **fields: Any) -> None:
    """Write `result.json`, whole or not at all: the fields of a `Result` but for its arrays."""
    temporary = directory / "result.tmp"
    temporary.write_text(json.dumps(fields))
    temporary.rename(directory / RESULT_FILE)


def save_result(result: Result, directory: Path) -> None:
    """Write a result into an existing folder."""
    for call, array in result.outputs.items():
        save_array(array, output_path(directory, call))
    for (call, place), array in result.further.items():
        save_array(array, further_path(directory, call, place))
    arrays = ("outputs", "further")
    save_fields(directory, **{name: value for name, value in vars(result).items() if name not in arrays})


def load_result(directory: Path, calls: Sequence[Call]) -> Result:
    """The result that a child or `save_result` left in a folder, with the arrays of those calls that returned.

    Raises `RunnerError` for one that cannot be read: it comes from a process that ran an untrusted program.
    """
    path = directory / RESULT_FILE
    return read_record(
        path,
        lambda fields: _result(fields, directory, calls),
        what="the result of a run cannot be read",
        error=RunnerError,
        limit_bytes=_LARGEST_BYTES,
    )


def _result(fields: dict[str, Any], directory: Path, calls: Sequence[Call]) -> Result:
    outcome: Outcome = fields["outcome"]
    if outcome not in get_args(Outcome):
        raise ValueError(f"an outcome {outcome!r}")
    call_s = tuple(float(seconds) for seconds in fields["call_s"])
    return Result(
        outcome=outcome,
        message=str(fields["message"]),
        outputs=load_outputs(directory, len(calls)),
        further=_further(directory, calls),
        errors={int(call): str(text) for call, text in fields["errors"].items()},
        call_s=call_s,
        load_s=float(fields["load_s"]),
        peak_rss_bytes=int(fields["peak_rss_bytes"]),
        versions={str(name): str(text) for name, text in fields["versions"].items()},
        operators=_words(fields["operators"]),
        isa=str(fields["isa"]),
        cpu_features=_words(fields["cpu_features"]),
        instructions={str(name): str(text) for name, text in fields["instructions"].items()},
        in_use=_words(fields["in_use"]),
        conditions={str(name): float(number) for name, number in fields["conditions"].items()},
    )


def _words(listed: list[Any]) -> tuple[str, ...]:
    return tuple(str(word) for word in listed)


def load_outputs(directory: Path, calls: int) -> dict[int, Array]:
    """Kept outputs of the first calls that were written completely."""
    paths = ((call, output_path(directory, call)) for call in range(calls))
    return {call: np.load(path, allow_pickle=False) for call, path in paths if path.is_file()}


def _further(directory: Path, calls: Sequence[Call]) -> dict[tuple[int, int], Array]:
    return {
        (number, place): np.load(path, allow_pickle=False)
        for number, call in enumerate(calls)
        for place in range(len(call.further))
        if (path := further_path(directory, number, place)).is_file()
    }


def expected_path(directory: Path, call: int) -> Path:
    """Where a bundle keeps what a call should give, if it knows."""
    return directory / f"expected_{call:05d}.npy"
