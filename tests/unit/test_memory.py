"""Memory that is taken when it is written, and given back when it is free."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from verifier.core.memory import untouched_zeros

MEASURE = """
import torch
from verifier.core.memory import untouched_zeros
from verifier.core.system import return_freed
def resident_mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1]) / 1024
blocks = [torch.ones(1 << 20) for _ in range(64)]
before = resident_mib()
del blocks[:-1]
assert return_freed()
print(before - resident_mib())
before = resident_mib()
zeros = untouched_zeros((64, 1 << 20))
print(resident_mib() - before)
zeros[:16] = 1.0
print(resident_mib() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_given_back_and_not_taken() -> None:
    """63 blocks of 4 MiB below one that is in use; 256 MiB of zeros of which 64 are written."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    freed, taken, written = (float(word) for word in done.stdout.split())
    assert freed > 200
    assert taken < 1
    assert 64 <= written < 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool, torch.int64])
def test_zeros_are_ordinary_ones(dtype: torch.dtype) -> None:
    """Same contents, shape and dtype; writable."""
    made = untouched_zeros((2, 3), dtype)
    assert made.dtype == dtype
    assert torch.equal(made, torch.zeros((2, 3), dtype=dtype))
    made[1] = 1
    assert int(made.sum()) == 3
