"""HQQ, scale only, of a weight that does not fit a cache: the integers and scales of torchao's `hqq_scale_only`, bit for bit, in a tenth of its time.

torchao passes over the whole weight up to 20 times, because it asks after every step whether the scales of all groups have settled. A group that has
settled stays as it is, and a step of one group does not look at another. So groups are taken some at a time, a settled one is left alone, and the
common number of steps is found afterwards. Source: `_choose_qparams_and_quantize_scale_only_hqq` of torchao 0.18.0, after Badri & Shaji 2023;
`tests/unit/test_hqq.py` holds both against one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 20
"""Steps at most."""
SETTLED = 1e-5
"""Relative change of a scale below which the search ends, if it is that of all."""
AT_ONCE = 1 << 18
"""Weights that are worked on at a time, 1 MiB in fp32: what is needed of them fits a core's cache."""


@dataclass(frozen=True)
class Search:
    """Scales of some groups [g] after the last step; `changes`, the largest relative change of each step [steps], and NaN if there is one; `moved`, the
    last step that changed a scale."""

    scales: Tensor
    changes: Tensor
    moved: int


def hqq_scale_only(weight: Tensor, *, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Integers int8 [N, K] and scales fp32 [N, K / group_size] of a weight [N, K], any floating dtype."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    groups = weight.reshape(-1, group_size)
    parts = torch.split(groups, max(1, AT_ONCE // group_size))
    searches = [_search(part.to(torch.float32), low, high, STEPS) for part in parts]
    changes = torch.stack([search.changes for search in searches]).amax(0)
    ended = torch.nonzero(changes < SETTLED)
    steps = int(ended[0]) + 1 if len(ended) else STEPS
    integers = torch.empty(groups.shape, dtype=torch.int8)
    scales = torch.empty(len(groups), dtype=torch.float32)
    place = 0
    for part, search in zip(parts, searches, strict=True):
        values = part.to(torch.float32)
        found = search.scales if search.moved < steps else _search(values, low, high, steps).scales
        rows = slice(place, place + len(part))
        integers[rows] = _integers(values, found, low, high).to(torch.int8)
        scales[rows] = found
        place += len(part)
    return integers.reshape(weight.shape), scales.reshape(len(weight), -1)


def _integers(values: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    return (values / scales.unsqueeze(-1)).round_().clamp_(low, high)


def _search(values: Tensor, low: int, high: int, steps: int) -> Search:
    """The scales of groups [g, group_size] by themselves."""
    smallest = torch.finfo(torch.float32).eps
    scales = (values.abs().amax(1) / max(-low, high)).clamp_min(smallest)
    changes = torch.zeros(STEPS)
    moved, left, moving = -1, torch.arange(len(values)), values
    for step in range(steps):
        before = scales[left]
        integers = _integers(moving, before, low, high)
        products = (moving * integers).sum(1)
        squares = integers.square_().sum(1)
        after = torch.where(squares > 0, products / squares, before).clamp_min(smallest).abs()
        changes[step] = ((after - before).abs() / before.clamp_min(smallest)).max()
        scales[left] = after
        unsettled = after != before
        if not bool(unsettled.any()):
            break
        moved = step
        if int(unsettled.sum()) * 2 < len(left):
            left, moving = left[unsettled], moving[unsettled]
    return Search(scales, changes, moved)
