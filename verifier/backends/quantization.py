"""How integers of a delegate stand for numbers: with one scale, one for each row, channel or group."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.artifact.storage import Span


@dataclass(frozen=True)
class PerTensor:
    """real = scale * (stored - zero_point)."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class PerToken:
    """Quantized while running, one scale and zero point per row of the last `nonbatch_dims` dimensions."""

    nonbatch_dims: int


@dataclass(frozen=True)
class PerChannel:
    """One fp32 scale per index of dimension `axis`, symmetric."""

    axis: int
    scales: Span | tuple[float, ...]
    count: int


@dataclass(frozen=True)
class PerGroup:
    """One bf16 scale per index of dimension `axis` and group of `group_size` along the other one: [N, K / group_size]."""

    axis: int
    group_size: int
    scales: Span
    count: int


Quantization = PerTensor | PerToken | PerChannel | PerGroup | None
