"""The process that runs an untrusted program: `python -m verifier.runner.child BUNDLE RESULT`. It may abort; its parent sees that.

Exit status: 0 with a `result.json`, whatever the program answered; 2 for a bundle that cannot be read; anything else is a
crash.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from verifier.core import upstream
from verifier.core.errors import RunnerError
from verifier.core.system import cpu_extensions, die_with_parent, machine, peak_bytes_of
from verifier.runner.bundle import load_bundle
from verifier.runner.constants import BUFFER_FILE, ETDUMP_FILE, LOOP, LOOP_SIDE, LOOP_TIMES, PLACE_FILE
from verifier.runner.protocol import ArgmaxOf, Array, Bundle, Call, Outcome, OutputOf
from verifier.runner.result import further_path, output_path, save_array, save_fields

FEATURES = ("avx", "fma", "amx", "f16c", "asimd", "i8mm", "bf16", "sve", "fphp")


def load_program(pte: Path, threads: int | None = None, trace_bytes: int | None = None) -> Any:
    """The program on ExecuTorch's runtime, in this very process. Raises `RuntimeError` for what it does not load."""
    runtime = load_libraries()
    if threads is not None:
        runtime._unsafe_reset_threadpool(threads)
    if trace_bytes is not None:
        return runtime._load_for_executorch(str(pte), enable_etdump=True, debug_buffer_size=trace_bytes)
    return runtime._load_for_executorch(str(pte))


@cache
def load_libraries() -> Any:
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
    return [name for name in cpu_extensions() if name.startswith(FEATURES) or name in ("sme", "sme2")]


class _CallError(Exception):
    """A call of the program that failed."""


class Session:
    """One run of a bundle on the runtime in this process; `native/src/session.cpp` is the same in C++, method by method."""

    def __init__(self, bundle: Bundle, directory: Path) -> None:
        given = [value for call in bundle.calls for value in call.inputs]
        self.bundle, self.directory = bundle, directory
        self.wanted = {(v.call, v.output) for v in given if isinstance(v, OutputOf)}
        self.wanted |= {(v.call, 0) for v in given if isinstance(v, ArgmaxOf)}
        self.programs: dict[int, Any] = {}
        self.held: dict[tuple[int, int], Any] = {}
        self.outcome: Outcome = "ok"
        self.message = ""
        self.errors: dict[int, str] = {}
        self.call_s: list[float] = []
        self.load_s = 0.0

    def run(self) -> None:
        """All calls in order; the first error ends the bundle."""
        begun = time.perf_counter()
        self.load()
        self.load_s = time.perf_counter() - begun
        with (self.directory / PLACE_FILE).open("wb") as place:
            for number, call in enumerate(self.bundle.calls):
                if self.outcome != "ok":
                    return
                # in place, never shorter: ext4 waits for the disk where a file is made empty and written again
                os.pwrite(place.fileno(), str(number).encode(), 0)
                self.call(number, call)
        if self.bundle.trace is not None and self.outcome == "ok":
            files = (str(self.directory / name) for name in (ETDUMP_FILE, BUFFER_FILE))
            self.programs[0].write_etdump_result_to_file(*files)

    def load(self) -> None:
        """Every instance of the program."""
        trace_bytes = None if self.bundle.trace is None else self.bundle.trace.buffer_bytes
        try:
            for instance in sorted({0, *(call.instance for call in self.bundle.calls)}):
                threads = None if self.programs else self.bundle.threads
                self.programs[instance] = load_program(self.bundle.pte, threads, trace_bytes)
        except (RuntimeError, ValueError) as error:
            self.outcome, self.message = "refused", str(error)

    def call(self, number: int, call: Call) -> None:
        """One call, timed without what is kept of it."""
        inputs = tuple(self.given(value) for value in call.inputs)
        begun = time.perf_counter()
        try:
            answer = self.answer(call, inputs)
        except _CallError as error:
            if not call.may_fail:
                self.outcome, self.message = "failed", str(error)
                return
            self.errors[number], answer = str(error), None
        self.call_s.append(time.perf_counter() - begun)
        if answer is not None:
            self.keep(number, call, answer)

    def answer(self, call: Call, inputs: tuple[Any, ...]) -> Any:
        """The outputs of a call, None of `LOOP`. They alias the program's memory until its next call. Raises `_CallError`."""
        if call.method == LOOP:
            return _loop()
        try:
            return self.programs[call.instance].run_method(call.method, inputs, False)
        except (RuntimeError, ValueError) as error:
            raise _CallError(str(error)) from error

    def given(self, value: Array | OutputOf | ArgmaxOf) -> Any:
        """The tensor of an input."""
        if isinstance(value, OutputOf):
            return self.held[value.call, value.output]
        if isinstance(value, ArgmaxOf):
            return _last_row(self.held[value.call, 0]).argmax(-1).reshape(1, 1)
        import torch

        return torch.from_numpy(np.array(value))

    def keep(self, number: int, call: Call, answer: Any) -> None:
        """Copy what later calls are given, and write what the bundle asks for. A cache that nobody asks for is not copied."""
        first = _last_row(answer[0]) if call.rows == "last" else answer[0]
        for output in {output for at, output in self.wanted if at == number}:
            self.held[number, output] = (answer[output] if output else first).clone()
        if call.keep:
            save_array(_plain(first), output_path(self.directory, number))
        for place, part in enumerate(call.further):
            rows = answer[part.output].narrow(part.axis, 0, part.length)
            save_array(_plain(rows), further_path(self.directory, number, place))

    def write(self) -> None:
        """`result.json`."""
        save_fields(
            self.directory,
            outcome=self.outcome,
            message=self.message,
            call_s=self.call_s,
            errors=self.errors,
            load_s=self.load_s,
            peak_rss_bytes=peak_bytes_of(resource.getrusage(resource.RUSAGE_SELF)),
            isa=machine(),
            cpu_features=cpu_features(),
            operators=sorted(load_libraries()._get_operator_names()),
            versions={name: importlib.metadata.version(name) for name in ("executorch", "torch")},
            instructions={},  # into this and the next two only the C++ runner looks
            in_use=[],
            conditions={},
        )


def carry_out(bundle: Bundle, directory: Path) -> None:
    """Run all calls of a bundle. Writes `result.json` and the kept outputs into a folder."""
    import torch  # noqa: F401  the time that this takes is none of loading the program

    session = Session(bundle, directory)
    session.run()
    session.write()


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


def _last_row(output: Any) -> Any:
    """[…, N] -> [1, N]."""
    return output.reshape(-1, output.shape[-1])[-1:]


def _plain(output: Any) -> Array:
    array: Array = output.numpy() if hasattr(output, "numpy") else np.asarray(output)
    return array


def preload() -> None:
    """Import what carrying out a bundle needs, and load no program. Python does not look for garbage meanwhile, nor later among what was imported: a
    tenth of the time, and forks share those pages."""
    gc.disable()
    load_libraries()
    gc.freeze()
    gc.enable()


def main(sent: str, back: str) -> int:
    """Carry out the bundle of one folder into another; the exit status."""
    die_with_parent()
    try:
        asked = load_bundle(Path(sent))
    except RunnerError as error:
        print(error, file=sys.stderr)
        return 2
    carry_out(asked, Path(back))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
