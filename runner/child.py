"""The process that runs an untrusted program: `python -m verifier.runner.child BUNDLE RESULT`. It may abort; its parent sees that.

Exit status: 0 with a `result.json`, whatever the program answered; 2 for a bundle that cannot be read; anything else is a
crash.
"""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from verifier.core import upstream
from verifier.core.python import die_with_parent
from verifier.errors import RunnerError
from verifier.runner.bundle import load_bundle
from verifier.runner.protocol import (
    BUFFER_FILE,
    ETDUMP_FILE,
    LOOP,
    LOOP_SIDE,
    LOOP_TIMES,
    ArgmaxOf,
    Array,
    Bundle,
    OutputOf,
)
from verifier.runner.result import PLACE_FILE, further_path, output_path, save_array, save_fields

FEATURES = ("avx", "fma", "amx", "f16c", "asimd", "i8mm", "bf16", "sve", "fphp")


def load_program(pte: Path, threads: int | None = None, trace_bytes: int | None = None) -> Any:
    """The program on ExecuTorch's runtime, in this very process. Raises `RuntimeError` for what it does not load."""
    runtime = _runtime()
    if threads is not None:
        runtime._unsafe_reset_threadpool(threads)
    if trace_bytes is not None:
        return runtime._load_for_executorch(str(pte), enable_etdump=True, debug_buffer_size=trace_bytes)
    return runtime._load_for_executorch(str(pte))


@cache
def _runtime() -> Any:
    """ExecuTorch's runtime with the kernels that LLaVA needs.

    `portable_lib` and the packages of the two kernel libraries are thin wrappers that import all of the exporter: 5 of a
    child's 8 seconds, measured on two busy cores. What they wrap is loaded here as they do it, the runtime first.
    """
    import torch

    runtime = upstream.RUNTIME.resolve()
    for library in (upstream.LLAMA_KERNELS, upstream.QUANTIZED_KERNELS):
        torch.ops.load_library(library.resolve())  # type: ignore[no-untyped-call]
    return runtime


def cpu_features() -> list[str]:
    """What the kernel says of this CPU that matters to XNNPACK: vector and matrix extensions."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    listed = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return [name for name in listed.split() if name.startswith(FEATURES) or name in ("sme", "sme2")]


def carry_out(bundle: Bundle, directory: Path) -> None:
    """Run all calls in order; the first error ends the bundle. Writes `result.json` and the kept outputs into a folder."""
    import torch

    used = {(v.call, v.output) for call in bundle.calls for v in call.inputs if isinstance(v, OutputOf)}
    used |= {(v.call, 0) for call in bundle.calls for v in call.inputs if isinstance(v, ArgmaxOf)}
    begun = time.perf_counter()
    fields: dict[str, Any] = {"outcome": "ok", "message": "", "call_s": [], "errors": {}}
    programs: dict[int, Any] = {}
    trace_bytes = None if bundle.trace is None else bundle.trace.buffer_bytes
    try:
        for instance in sorted({0, *(call.instance for call in bundle.calls)}):
            programs[instance] = load_program(bundle.pte, None if programs else bundle.threads, trace_bytes)
    except (RuntimeError, ValueError) as error:
        fields |= {"outcome": "refused", "message": str(error)}
    fields["load_s"] = time.perf_counter() - begun
    outputs: dict[tuple[int, int], Any] = {}

    def given(value: Array | OutputOf | ArgmaxOf) -> Any:
        if isinstance(value, OutputOf):
            return outputs[value.call, value.output]
        if isinstance(value, ArgmaxOf):
            return outputs[value.call, 0].argmax(-1).reshape(1, 1)
        return torch.from_numpy(np.array(value))

    for number, call in enumerate(bundle.calls if fields["outcome"] == "ok" else ()):
        (directory / PLACE_FILE).write_text(str(number))
        inputs = tuple(given(value) for value in call.inputs)
        begun = time.perf_counter()
        if call.method == LOOP:
            _loop()
            fields["call_s"].append(time.perf_counter() - begun)
            continue
        try:
            # outputs alias the program's memory until its next call: what is needed is copied below, a cache need not be
            answer = programs[call.instance].run_method(call.method, inputs, False)
        except (RuntimeError, ValueError) as error:
            if call.may_fail:
                fields["errors"][number] = str(error)
                fields["call_s"].append(time.perf_counter() - begun)
                continue
            fields |= {"outcome": "failed", "message": str(error)}
            break
        fields["call_s"].append(time.perf_counter() - begun)
        for output in {output for at, output in used if at == number}:
            outputs[number, output] = answer[output].clone()
        if call.keep:
            save_array(_plain(answer[0]), output_path(directory, number))
        for place, part in enumerate(call.further):
            part_of = answer[part.output].narrow(part.axis, 0, part.length)
            save_array(_plain(part_of), further_path(directory, number, place))
    if bundle.trace is not None and fields["outcome"] == "ok":
        files = (directory / name for name in (ETDUMP_FILE, BUFFER_FILE))
        programs[0].write_etdump_result_to_file(*(str(file) for file in files))
    fields["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fields["isa"], fields["cpu_features"] = platform.machine(), cpu_features()
    fields["operators"] = sorted(_runtime()._get_operator_names())
    fields["versions"] = {name: importlib.metadata.version(name) for name in ("executorch", "torch")}
    fields |= {"instructions": {}, "in_use": [], "conditions": {}}  # the C++ runner looks into these
    save_fields(directory, **fields)


def _loop() -> None:
    """See `LOOP`. The C++ runner has a plain loop of its own: times of two runners are not to be compared."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    side = torch.full((LOOP_SIDE, LOOP_SIDE), 1 / LOOP_SIDE)
    product = side
    for _ in range(LOOP_TIMES):
        product = product @ side
    torch.set_num_threads(threads)


def _plain(output: Any) -> Array:
    array: Array = output.numpy() if hasattr(output, "numpy") else np.asarray(output)
    return array


if __name__ == "__main__":
    die_with_parent()
    try:
        asked = load_bundle(Path(sys.argv[1]))
    except RunnerError as error:
        sys.exit(print(error, file=sys.stderr) or 2)
    carry_out(asked, Path(sys.argv[2]))
