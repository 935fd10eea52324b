"""Memory that was freed goes back to the system: large tensors come and go here by the thousand."""

from __future__ import annotations

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>
_LEAST_BYTES = 4 << 20


def return_large_blocks() -> bool:
    """Have glibc map blocks of 4 MiB and more one by one, so that each is returned when it is freed. Whether that could be set.

    By default the first freed block of up to 32 MiB moves the threshold beyond its own size, and later ones are cut from a heap that holes
    keep: 3.3 GiB of 10.3 in the verification of a 7B model, whose attention matrices are 21 MB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another libc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LEAST_BYTES))
