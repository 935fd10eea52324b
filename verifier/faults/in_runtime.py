"""Faults of the runtime: kernels of the C++ runner with one line changed and compiled, and results of XNNPACK's as a faulty
kernel would have left them.

XNNPACK is a binary here; what its kernels make is changed where the trace is read, so that only `layers.*` can see it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from verifier.audit.recipe import quantized_linear
from verifier.core.errors import VerifierError
from verifier.core.types import Scheme
from verifier.families.llava.keymap import map_keys
from verifier.faults.fault import Fault, Work, fault, patch
from verifier.ladder.trace import CallTrace
from verifier.runner.native import SOURCE
from verifier.runner.native.cmake import build
from verifier.runner.protocol import Array

_BUILDS = Path(tempfile.gettempdir()) / f"llava-faulty-kernels-{os.getuid()}"


def _kernels(work: Work, *changes: tuple[str, str]) -> None:
    """Run on `llava_main` whose kernels have lines replaced. Sources are compiled again only where they changed."""
    _BUILDS.mkdir(mode=0o700, exist_ok=True)
    with FileLock(_BUILDS / "lock"):
        source, binary = _BUILDS / "source", work.folder / "native"
        _refresh(source)
        kernels = source / "src" / "kernels.cpp"
        text = (SOURCE / "src" / "kernels.cpp").read_text()
        for right, wrong in changes:
            if text.count(right) != 1:
                raise VerifierError(
                    "the line to change is not in the kernels once", got=text.count(right), expected=right
                )
            text = text.replace(right, wrong)
        kernels.write_text(text)
        made = build(_BUILDS / "build", source=source)
        binary.mkdir()
        for file in (made, *made.parent.glob("lib*.so*")):
            shutil.copy(file, binary / file.name, follow_symlinks=False)
    os.environ["LLAVA_MAIN"] = str(binary / "llava_main")
    work.arguments += ["--target", "native"]


def _refresh(copy: Path) -> None:
    """Bring a copy of the sources up to date, file by file: those of an earlier version speak another bundle's language."""
    for path in SOURCE.rglob("*"):
        own = copy / path.relative_to(SOURCE)
        if not path.is_file() or path.suffix in (".py", ".pyc"):
            continue
        if not own.exists() or own.read_bytes() != path.read_bytes():
            own.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, own)


SEEN = "const int64_t seen = causal ? start + token + 1 : start + tokens;"


@fault("use", "the last key of a tile is masked", rows=(30,), step="kernel", place=r"attention")
def last_column_of_a_tile(work: Work) -> None:
    """Where the row ends on a multiple of 32."""
    _kernels(work, (SEEN, "const int64_t all = start + token + 1, seen = all % 32 == 0 ? all - 1 : all;"))


@fault(
    "use", "the last row of a chunk sees one row that is not written yet", rows=(33,), step="kernel", place=r"attention"
)
def last_query_row(work: Work) -> None:
    """Its mask is unset; single tokens are right."""
    _kernels(
        work,
        (SEEN, "const int64_t seen = start + token + 1 + (tokens > 1 && token == tokens - 1 && start + tokens < 768);"),
        (
            "weights(static_cast<size_t>(made.start + made.tokens))",
            "weights(static_cast<size_t>(made.start + made.tokens + 1))",
        ),
    )


@fault("use", "the mask is aligned upper-left", rows=(34,), step="kernel", place=r"attention")
def upper_left(work: Work) -> None:
    """Right in the first chunk."""
    _kernels(work, (SEEN, "const int64_t seen = token + 1;"))


@fault("use", "the mask is off by one for one head", step="kernel", place=r"attention")
def one_heads_mask(work: Work) -> None:
    """Head 1 does not see its own token."""
    _kernels(work, (SEEN, "const int64_t all = start + token + 1, seen = head == 1 && all > 1 ? all - 1 : all;"))


@fault("use", "the attention scale is 0.1 % off", step="kernel", place=r"attention")
def attention_scale(work: Work) -> None:
    """A constant that somebody rounded."""
    _kernels(
        work, ("1.0f / std::sqrt(static_cast<float>(made.width))", "0.999f / std::sqrt(static_cast<float>(made.width))")
    )


@fault("use", "attention weights kept in bf16", step="kernel", place=r"attention")
def weights_in_bf16(work: Work) -> None:
    """Eight bits of each exponential."""
    line = "weights[key] = std::exp(weights[key] - largest);"
    cut = "{ uint32_t bits; std::memcpy(&bits, &weights[key], 4); bits &= 0xffff0000u; std::memcpy(&weights[key], &bits, 4); }"
    _kernels(work, (line, line + cut))


@fault("use", "cache rows are not written while decoding", rows=(37,), step="kernel", place=r"cache|attention")
def no_write_back(work: Work) -> None:
    """A write-back that only chunks have."""
    line = "const size_t row_bytes"
    _kernels(
        work,
        (line, "if (value.size(1) == 1 && start > 0) {\n    log_result(context, stack);\n    return;\n  }\n  " + line),
    )


@fault(
    "use", "keys shifted by one row in one element of the cache", rows=(51,), step="kernel", place=r"cache|attention"
)
def one_element_of_a_row(work: Work) -> None:
    """The first number of each written stretch comes from the next row."""
    line = "  log_result(context, stack);\n}\n\nfloat dot"
    wrong = "  if (value.size(1) > 1) {\n    std::memcpy(bytes + static_cast<size_t>(start) * row_bytes, static_cast<const uint8_t*>(value.const_data_ptr()) + row_bytes, 4);\n  }\n"
    _kernels(work, (line, wrong + line))


@fault(
    "use", "scratch shared between threads", rows=(54,), step="kernel", place=r"attention|text_decoder|determin|thread"
)
def scratch_shared(work: Work) -> None:
    """All rows sum into one buffer."""
    _kernels(
        work,
        (
            "    std::vector<float> sum(static_cast<size_t>(made.width));",
            "    static std::vector<float> sum(4096);\n    sum.resize(4096);",
        ),
    )


@fault("use", "scratch that is not cleared between blocks", rows=(54,), step="kernel", place=r"attention")
def scratch_not_cleared(work: Work) -> None:
    """Sums of a later block begin with what the one before left."""
    _kernels(
        work, ("std::fill(sum.begin(), sum.end(), 0.0f);", "if (begin == 0) std::fill(sum.begin(), sum.end(), 0.0f);")
    )


@dataclass(frozen=True)
class _Spoilt:
    """A traced tensor as a faulty kernel would have left it."""

    contents: Any

    def array(self) -> Any:
        """Its contents."""
        return self.contents


def _traced(work: Work, change: Callable[[list[CallTrace]], None]) -> None:
    """Change what the trace of the runtime says."""
    from verifier.ladder import gather

    work.traced_only = True

    def read(folder: Path) -> list[CallTrace]:
        traces: list[CallTrace] = right(folder)
        change(traces)
        return traces

    right = patch(gather, "read_trace", read)


def _spoil(call: dict[int, Any], instruction: int, place: int, made: Any) -> None:
    """Put `made` in the place of a traced result, and wherever later instructions were handed that result."""
    before = call[instruction][place].array()
    for index in sorted(call):
        if index < instruction:
            continue
        call[index] = tuple(
            _Spoilt(made.reshape(tensor.array().shape)) if _holds(tensor, before) else tensor for tensor in call[index]
        )


def _holds(tensor: Any, contents: Any) -> bool:
    found = tensor.array()
    return (
        found.dtype == contents.dtype
        and found.size == contents.size
        and bool((found.ravel() == contents.ravel()).all())
    )


def _linear(work: Work, module: str, compute: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Let a decoder linear give something else in its second call: `compute` sees its rows [S, K] and weights [N, K], float64."""
    instruction = work.constants[f"text_decoder.{module}.weight"].instruction
    key = map_keys(work.checkpoint.keys, work.checkpoint.geometry).text[module + ".weight"]
    constant: Any = work.constants[f"text_decoder.{module}.weight"].value
    made = quantized_linear(work.checkpoint.tensor(key), Scheme(constant.quantization.group_size))
    rows = len(made.integers)
    scales = made.scales.reshape(rows, -1, 1).double()
    weight = (made.integers.double().view(rows, scales.shape[1], -1) * scales).view(rows, -1)

    def change(traces: list[CallTrace]) -> None:
        calls = [
            trace
            for trace in traces
            if instruction in trace and trace[instruction][0].array().shape[-1] == weight.shape[1]
        ]
        call = next(c for c in calls if c[instruction][0].array().size > weight.shape[1])
        inputs = torch.from_numpy(call[instruction][0].array()).double()
        out = np.asarray(compute(inputs, weight)).astype(np.float32)
        _spoil(call, instruction, -1, out)

    _traced(work, change)


@fault(
    "use",
    "activations of one linear quantized symmetrically",
    rows=(41,),
    step="kernel",
    place=r"layers\.2\.feed_forward\.w1",
)
def symmetric_activations(work: Work) -> None:
    """Half of the range for what has one sign."""

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return (x / step).round() * step @ weight.T

    _linear(work, "layers.2.feed_forward.w1", compute)


@fault(
    "use",
    "activations of one linear quantized with one scale for all rows",
    rows=(42,),
    step="kernel",
    place=r"layers\.1\.attention\.wo",
)
def per_tensor_activations(work: Work) -> None:
    """The largest row decides."""

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        step = (x.amax().clamp(min=0) - x.amin().clamp(max=0)) / 255
        return (x / step).round() * step @ weight.T

    _linear(work, "layers.1.attention.wo", compute)


@fault(
    "use", "a kernel reads packed rows with another width", rows=(57,), step="kernel", place=r"layers\.3\.attention\.wq"
)
def other_tile_width(work: Work) -> None:
    """The last eight rows of a linear are those before them."""

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        rows = torch.arange(len(weight))
        rows[-8:] -= 8
        return x @ weight[rows].T

    _linear(work, "layers.3.attention.wq", compute)


def _residual(work: Work, compute: Callable[[Array, Array], Array]) -> None:
    """Let the residual addition behind layer 0's feed-forward give something else: of the stream and of the result."""
    instruction = work.constants["text_decoder.layers.0.feed_forward.w2.weight"].instruction + 1

    def change(traces: list[CallTrace]) -> None:
        call = next(
            trace
            for trace in traces
            if instruction in trace
            and work.decoder.instructions[instruction].kind == "delegate"
            and len(trace[instruction]) >= 4
        )
        stream, out = (call[instruction][place].array() for place in (0, -2))
        _spoil(call, instruction, -2, compute(stream, out))

    _traced(work, change)


@fault("use", "an addition ignores its alpha", rows=(47,), step="kernel", place=r"layers\.0\.feed_forward")
def alpha_ignored(work: Work) -> None:
    """One operand counts twice."""
    _residual(work, lambda stream, out: out + stream)


@fault("use", "a fused clamp dropped", rows=(48,), step="kernel", place=r"layers\.0\.feed_forward")
def clamp_dropped(work: Work) -> None:
    """Values beyond three go on beyond it."""
    _residual(work, lambda _stream, out: np.where(np.abs(out) > 1, out * np.float32(1.25), out).astype(np.float32))


FAULTS: tuple[Fault, ...] = (
    last_column_of_a_tile,
    last_query_row,
    upper_left,
    one_heads_mask,
    attention_scale,
    weights_in_bf16,
    no_write_back,
    one_element_of_a_row,
    scratch_shared,
    scratch_not_cleared,
    symmetric_activations,
    per_tensor_activations,
    other_tile_width,
    alpha_ignored,
    clamp_dropped,
)
