"""QEMU's instrumentation counts what a program of known instructions runs, class by class."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bench.arm_instructions import build_loop, build_plugin, count

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("qemu-aarch64", "aarch64-linux-gnu-gcc", "gcc"))),
    reason="needs Debian's qemu-user, gcc and g++-aarch64-linux-gnu",
)
ROUND = {"sdot": 2, "smmla": 1, "other_dot": 1, "fmla": 2, "outer_product": 0, "vector_load": 3, "load": 3, "all": 18}
"""Of one round of arm_loop.s."""


@pytest.mark.parametrize("times", [1, 1000])
def test_known_loop_is_counted_exactly(tmp_path: Path, times: int) -> None:
    """Five instructions stand outside the loop, one of them a load."""
    counts = count(build_plugin(tmp_path), "max", [str(build_loop(tmp_path, times))])
    expected = {name: number * times for name, number in ROUND.items()}
    assert counts == expected | {"load": expected["load"] + 1, "all": expected["all"] + 5}
