"""Memory that was freed goes back to the system, and what nothing was written to takes none."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def return_freed() -> bool:
    """Have glibc give back what lies free between blocks in use; by itself it does so at the end of its heap alone. Whether it could.

    Between layers of a large model, that is: holes were 3.3 GiB of 10.3 in the verification of a 7B, whose attention matrices are 21 MB. To
    have every such block mapped by itself (`M_MMAP_THRESHOLD`) leaves no holes either, but doubled the page faults, and took 214 s more of
    a 7B's verification.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another libc
        return False
    return bool(trim(0))


def untouched_zeros(sizes: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros whose pages are taken when something is written to them: `torch.zeros` writes them all.

    KV-caches of a 7B for 768 positions are 805 MB, a comparison layer by layer keeps four of them, and feeds them 17 tokens.
    """
    return torch.from_numpy(np.zeros(tuple(sizes), torch.empty(0, dtype=dtype).numpy().dtype))
