"""The process that runs an untrusted program: `python -m runner.child FOLDER`. It may abort; its parent sees that.

Exit status: 0 with a `result.json`, whatever the program answered; anything else is a crash.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from runner.protocol import BUFFER_FILE, ETDUMP_FILE, Array, Bundle, OutputOf, TraceRequest, load_bundle, output_path


def _load(pte: Path, threads: int | None, trace: TraceRequest | None) -> Any:
    # The order matters: the runtime must be loaded before the libraries that register kernels with it.
    from executorch.extension.pybindings import portable_lib  # isort: skip
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  isort: skip
    from executorch.kernels import quantized  # noqa: F401  isort: skip

    if threads is not None:
        portable_lib._unsafe_reset_threadpool(threads)
    if trace is not None:
        return portable_lib._load_for_executorch(str(pte), enable_etdump=True, debug_buffer_size=trace.buffer_bytes)
    return portable_lib._load_for_executorch(str(pte))


def _operator_names() -> list[str]:
    from executorch.extension.pybindings import portable_lib

    return sorted(portable_lib._get_operator_names())


def _write(directory: Path, **fields: Any) -> None:
    text = json.dumps(fields)
    temporary = directory / "result.tmp"
    temporary.write_text(text)
    temporary.rename(directory / "result.json")


def carry_out(bundle: Bundle, directory: Path) -> None:
    """Run all calls in order; the first error ends the bundle. Writes `result.json` and the kept outputs."""
    import torch

    used = {value.call for call in bundle.calls for value in call.inputs if isinstance(value, OutputOf)}
    begun = time.perf_counter()
    fields: dict[str, Any] = {"outcome": "ok", "message": "", "call_s": [], "errors": {}}
    try:
        program = _load(bundle.pte, bundle.threads, bundle.trace)
    except (RuntimeError, ValueError) as error:
        fields |= {"outcome": "refused", "message": str(error)}
    fields["load_s"] = time.perf_counter() - begun
    outputs: dict[int, Any] = {}
    for number, call in enumerate(bundle.calls if fields["outcome"] == "ok" else ()):
        (directory / "at.txt").write_text(str(number))
        inputs = tuple(
            outputs[v.call] if isinstance(v, OutputOf) else torch.from_numpy(np.array(v)) for v in call.inputs
        )
        begun = time.perf_counter()
        try:
            answer = program.run_method(call.method, inputs)
        except (RuntimeError, ValueError) as error:
            if call.may_fail:
                fields["errors"][number] = str(error)
                fields["call_s"].append(time.perf_counter() - begun)
                continue
            fields |= {"outcome": "failed", "message": str(error)}
            break
        fields["call_s"].append(time.perf_counter() - begun)
        first: Any = answer[0]
        if number in used:
            outputs[number] = first.clone()
        if call.keep:
            _save(first, output_path(directory, number))
    if bundle.trace is not None and fields["outcome"] == "ok":
        files = (bundle.trace.directory / name for name in (ETDUMP_FILE, BUFFER_FILE))
        program.write_etdump_result_to_file(*(str(file) for file in files))
    fields["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fields["operators"] = _operator_names()
    fields["versions"] = {name: importlib.metadata.version(name) for name in ("executorch", "torch")}
    _write(directory, **fields)


def _save(output: Any, path: Path) -> None:
    array: Array = output.numpy() if hasattr(output, "numpy") else np.asarray(output)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    carry_out(load_bundle(folder), folder)
