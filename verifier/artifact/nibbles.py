"""4-bit integers, two a byte, stored plus 8. XNNPACK puts the first in the low nibble, the embedding kernels in the high one."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.artifact.storage import Bytes

ZERO_POINT = 8


def unpack_nibbles(packed: Bytes, *, low_first: bool) -> np.ndarray[Any, np.dtype[np.int8]]:
    """uint8 [..., n] -> int8 [..., 2 n] in [-8, 7]."""
    low, high = packed & 15, packed >> 4
    pairs = np.stack([low, high] if low_first else [high, low], axis=-1).reshape(*packed.shape[:-1], -1)
    out: np.ndarray[Any, np.dtype[np.int8]] = pairs.astype(np.int8) - np.int8(ZERO_POINT)
    return out


def pack_nibbles(integers: np.ndarray[Any, np.dtype[np.int8]], *, low_first: bool) -> Bytes:
    """int8 [..., 2 n] in [-8, 7] -> uint8 [..., n]."""
    stored = (integers + np.int8(ZERO_POINT)).astype(np.uint8)
    low, high = (stored[..., 0::2], stored[..., 1::2]) if low_first else (stored[..., 1::2], stored[..., 0::2])
    return np.bitwise_or(low, np.left_shift(high, 4), dtype=np.uint8)
