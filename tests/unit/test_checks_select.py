"""Which checks and images a request selects."""

from __future__ import annotations

from contextlib import closing

import pytest

from tests.support import EMBEDDED_PTE
from verifier.checks.registry import OF_ALL_IMAGES, select
from verifier.errors import UsageError
from verifier.opening import Request, open_request, planned_cases


def test_device_checks_are_for_other_machines() -> None:
    """Only where the program runs on another architecture."""
    here, there = ({c.id for c in select((), with_device=device)} for device in (False, True))
    assert there - here == {"device.instructions", "device.lengths", "device.host"}


def test_chosen_images_are_the_only_ones() -> None:
    """Checks whose bands need all images are left out; a glob that matches nothing is refused."""
    opened = open_request(Request(EMBEDDED_PTE, images=("pair_*", "wide_0")))
    with closing(opened.runner):
        planned = planned_cases(opened)
    cases = [case for name, case in planned if name == "greedy.golden"]
    assert cases == [i.name for i in opened.golden.images]
    assert "wide_0" in cases
    assert all(case == "wide_0" or case.startswith("pair_") for case in cases)
    assert not OF_ALL_IMAGES & {name for name, _ in planned}
    with pytest.raises(UsageError, match="no golden image matches"):
        open_request(Request(EMBEDDED_PTE, images=("nothing_*",)))
