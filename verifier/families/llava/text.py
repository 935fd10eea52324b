"""The language side: ExecuTorch's Llama transformer with a static KV-cache, without its embedding table.

Built on the meta device and filled tensor by tensor, so that a 7B decoder never exists twice, nor in fp32 at once when
its linears are quantized on arrival.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from verifier.core import upstream
from verifier.core.memory import untouched_zeros
from verifier.families.definition import Caches
from verifier.families.geometry import TextGeometry


def construct_decoder(
    geometry: TextGeometry, *, max_seq_len: int, max_context_len: int, custom_sdpa: bool
) -> nn.Module:
    """ExecuTorch's `Transformer` with parameters on the meta device and real RoPE tables, mask and cache.

    `custom_sdpa` swaps in the `llama::update_cache` and `llama::custom_sdpa` ops (cache [1, S, H, D] fp32).
    """
    arguments = _arguments(geometry, max_seq_len=max_seq_len, max_context_len=max_context_len, custom_sdpa=custom_sdpa)
    with torch.device("meta"):
        decoder = upstream.LLAMA_DECODER.resolve()(arguments)
        if custom_sdpa:
            _use_custom_ops(decoder)
    rope = upstream.LLAMA_ROPE.resolve()(arguments)
    mask = torch.ones(max_context_len, max_context_len, dtype=torch.bool).tril()
    decoder.rope = rope
    for layer in decoder.layers:
        attention = layer.attention
        attention.rope = rope
        attention.register_buffer("mask", mask, persistent=False)
    clear_caches(decoder)
    made: nn.Module = decoder.eval()
    return made


_CACHE = ("k_cache", "v_cache")


def fresh_caches(decoder: Any) -> Caches:
    """Keys and values of every layer, all zeros, which take no memory until they are written."""
    caches = [layer.attention.kv_cache for layer in decoder.layers]
    return [tuple(untouched_zeros(getattr(cache, name).shape) for name in _CACHE) for cache in caches]  # type: ignore[misc]


def use_cache(layer: Any, cache: tuple[Tensor, Tensor]) -> None:
    """Have a layer read and write these keys and values."""
    for name, tensor in zip(_CACHE, cache, strict=True):
        # not persistent: a cache is state of a run, never weights of a checkpoint
        layer.attention.kv_cache.register_buffer(name, tensor, persistent=False)


def clear_caches(decoder: Any) -> None:
    """Give every layer a cache of zeros."""
    for layer, cache in zip(decoder.layers, fresh_caches(decoder), strict=True):
        use_cache(layer, cache)


def _arguments(geometry: TextGeometry, *, max_seq_len: int, max_context_len: int, custom_sdpa: bool) -> Any:
    return upstream.LLAMA_ARGUMENTS.resolve()(
        dim=geometry.width,
        n_layers=geometry.layers,
        n_heads=geometry.heads,
        n_kv_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        hidden_dim=geometry.hidden,
        vocab_size=geometry.vocabulary,
        norm_eps=geometry.norm_eps,
        rope_theta=geometry.rope_theta,
        max_batch_size=1,
        max_seq_len=max_seq_len,
        max_context_len=max_context_len,
        use_kv_cache=True,
        use_sdpa_with_kv_cache_op=custom_sdpa,
        enable_dynamic_shape=True,
        use_hf_rope=True,
        apply_embedding=False,
    )


def rope_tables(geometry: TextGeometry, *, max_context_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, fp32 [T, head_dim]: the tables that the decoder reads. Su et al. 2021."""
    rope = upstream.LLAMA_ROPE.resolve()(
        _arguments(geometry, max_seq_len=max_context_len, max_context_len=max_context_len, custom_sdpa=True)
    )
    return rope.freqs_cos, rope.freqs_sin


def inverse_frequencies(geometry: TextGeometry) -> Tensor:
    """What each pair of channels of a head turns by from one position to the next, in radians, fp32 [head_dim / 2]. Su et al. 2021; rounded as
    transformers' `modeling_rope_utils` does."""
    exponents = torch.arange(0, geometry.head_dim, 2, dtype=torch.int64).to(torch.float32) / geometry.head_dim
    return 1.0 / (geometry.rope_theta**exponents)


def _use_custom_ops(decoder: nn.Module) -> None:
    upstream.USE_CUSTOM_CACHE.resolve()(decoder)
    upstream.USE_CUSTOM_SDPA.resolve()(decoder)
