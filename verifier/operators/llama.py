"""Operators of ExecuTorch's Llama: the KV-cache that is written in place, and attention over it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from verifier.core.limits import UNIT
from verifier.operators.bounds import each, exact
from verifier.operators.operator import Arguments, Declared, Operator, ProgramFaultError, Results, RowWrite
from verifier.operators.order import Order, dot, total
from verifier.operators.rounding import Sums, units

BLOCK = 32
"""Keys that a kernel takes at a time, at the least; behind each block what was summed is scaled again."""
UNSEEN = -1e4
"""A mask below this gives a key no weight at all."""


def _update_cache(args: Arguments, _outputs: Declared) -> Results:
    """Write rows [1, S, H, D] into the cache [1, T, H, D] from a position on.

    The returned tensor is a dummy. Raises `ProgramFaultError` if the rows do not fit, as the runtime refuses them.
    """
    rows, cache, start = args[0], args[1], int(args[2])
    if start < 0 or start + rows.shape[1] > cache.shape[1]:
        raise ProgramFaultError(f"rows {start}..{start + rows.shape[1]} of a cache of {cache.shape[1]}")
    cache[:, start : start + rows.shape[1]] = rows
    return (None,)


def _attention_operands(args: Arguments) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """Queries [1, H, S, D], keys and values [1, H, T, D] of each query head, the scale, and what is added to scores [1, 1, S, T]."""
    q, k, v, start, mask, _dropout, causal, scale = args[:8]
    length = int(start) + q.shape[1]
    if length > k.shape[1]:
        raise ProgramFaultError(f"attention over {length} rows of a cache of {k.shape[1]}")
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    added = torch.zeros(q.shape[1], length) if mask is None else mask[..., :length]
    if causal:
        seen = torch.arange(length)[None] <= torch.arange(q.shape[1])[:, None] + int(start)
        added = added.masked_fill(~seen, float("-inf"))
    return queries, keys, values, scale or q.shape[3] ** -0.5, added


def _attention_in_order(args: Arguments, order: Order) -> Results:
    """The weights are divided by their sum behind the product with the values, as op_sdpa_impl.h has it."""
    queries, keys, values, scale, added = _attention_operands(args)
    scores = dot(queries, keys.transpose(-1, -2), order) * scale + added
    weights = (scores - scores.amax(-1, keepdim=True)).double().exp().to(torch.float32)
    made = dot(weights, values, order) / total(weights, order)
    return (made.transpose(1, 2).contiguous(),)


def _custom_sdpa(args: Arguments, _outputs: Declared) -> Results:
    """softmax(q k^T / sqrt(D)) v over the cache's first `start + S` rows; query i sees rows up to `start + i` if causal.

    q [1, S, H, D], k and v [1, T, Hkv, D]; H / Hkv query heads share a key head, neighbours first. Sums in fp64.
    """
    queries, keys, values, scale, added = _attention_operands(args)
    scores = queries.double() @ keys.double().transpose(-1, -2) * scale + added
    return ((torch.softmax(scores, -1) @ values.double()).transpose(1, 2).to(torch.float32).contiguous(),)


def _attention_bound(args: Arguments, results: Results, sums: Sums) -> list[Tensor | None]:
    """Scores are sums over the width of a head; exp turns their errors, and the rounding of their difference to the largest, into shares of
    the weights, in sum and addend; the values are summed over the keys, block by block."""
    q, k, v, start, mask = args[0].double().abs(), args[1].double().abs(), args[2].double().abs(), int(args[3]), args[4]
    scale = abs(float(args[7])) if len(args) > 7 and args[7] is not None else q.shape[3] ** -0.5
    length = start + q.shape[1]
    share = q.shape[2] // k.shape[2]
    queries, keys, values = (x.transpose(1, 2) for x in (q, k[:, :length], v[:, :length]))
    keys, values = (x.repeat_interleave(share, dim=1) for x in (keys, values))
    scores = (queries @ keys.transpose(-1, -2)).amax(-1, keepdim=True) * scale
    if mask is not None:
        seen = mask[..., :length].double()
        scores = scores + torch.where(seen > UNSEEN, seen.abs(), 0.0).amax(-1, keepdim=True)
    score_bound = sums(q.shape[3] + 4) * scores + 4 * UNIT * scores
    own = sums(length) + sums(length + 4 * math.ceil(length / BLOCK)) + units("llama::custom_sdpa")
    # any convex combination of the values is at most their largest magnitude
    largest = values.amax(-2, keepdim=True)
    bound = (torch.expm1(2 * score_bound + own) * largest).transpose(1, 2)
    return each(results, lambda out: bound + UNIT * out)


_SOURCE = "executorch/extension/llm/custom_ops"
OPERATORS = (
    Operator(
        "llama::update_cache.out",
        _update_cache,
        exact,
        writes=1,
        rows=RowWrite(cache=1, rows=0, axis=1),
        part="kv_cache",
        source=f"{_SOURCE}/op_update_cache.cpp",
    ),
    Operator(
        "llama::custom_sdpa.out",
        _custom_sdpa,
        _attention_bound,
        in_order=_attention_in_order,
        attends=True,
        part="sdpa",
        source=f"{_SOURCE}/op_sdpa.cpp",
    ),
)
