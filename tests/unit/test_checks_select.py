"""Which checks and images a request selects."""

from __future__ import annotations

import platform
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import EMBEDDED_PTE
from verifier.checks.check import ALL_IMAGES, DEVICE, ELSEWHERE
from verifier.checks.registry import CHECKS, select
from verifier.core.errors import UsageError
from verifier.gather.opening import Request, _chosen, open_request, planned_cases
from verifier.golden.records import GoldenImage, GoldenSet


def test_device_checks_are_for_other_machines() -> None:
    """Where the program runs on Arm; two machines are compared only where there are two."""
    none, here, there = ({c.id for c in select((), frozenset(had))} for had in ((), (DEVICE,), (DEVICE, ELSEWHERE)))
    assert here - none == {"device.instructions", "device.lengths"}
    assert there - here == {"device.host"}


@pytest.mark.parametrize(
    ("host", "having"), [("x86_64", set[str]()), ("aarch64", {DEVICE}), ("arm64", {DEVICE})], ids=str
)
def test_a_host_that_is_arm_is_a_device(host: str, having: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The `local` target of a Mac with Apple silicon, or of an arm64 server, is Arm hardware."""
    monkeypatch.setattr(platform, "machine", lambda: host)
    opened = open_request(Request(EMBEDDED_PTE))
    assert opened.having & {DEVICE, ELSEWHERE} == having
    assert opened.runner.isa == ("x86_64" if host == "x86_64" else "aarch64")


@pytest.mark.parametrize(
    ("globs", "chosen"),
    [
        (("odd[1]",), ["odd[1]"]),
        (("odd[1].png",), ["odd[1]"]),
        (("odd[12]",), ["odd1", "odd2"]),
        (("a?b", "*é*"), ["a,b", "café / x"]),
        (("odd*", "odd[1]"), ["odd1", "odd2", "odd[1]"]),
    ],
)
def test_images_with_the_names_of_globs(globs: tuple[str, ...], chosen: list[str]) -> None:
    """A name is itself before it is a glob, and so is the name of its file; the order is that of the golden set."""
    names = ("odd1", "odd2", "odd[1]", "a,b", "café / x")
    images = tuple(GoldenImage(name, Path(f"{name}.png"), "", "square", "", (), (), "") for name in names)
    found = _chosen(GoldenSet(Path("golden.json"), "", images), globs)
    assert [image.name for image in found.images] == chosen


def test_chosen_images_are_the_only_ones() -> None:
    """Checks whose bands need all images are left out; a glob that matches nothing is refused."""
    opened = open_request(Request(EMBEDDED_PTE, images=("pair_*", "wide_0")))
    with closing(opened.runner):
        planned = planned_cases(opened)
    cases = [case for name, case in planned if name == "greedy.golden"]
    assert cases == [i.name for i in opened.golden.images]
    assert "wide_0" in cases
    assert all(case == "wide_0" or case.startswith("pair_") for case in cases)
    needing_all = {check.id for check in CHECKS if ALL_IMAGES in check.having}
    # their bands are about what all golden images have in common
    assert needing_all == {
        *("vision.embedding", "vision.channels", "logits.channels", "logits.distribution", "greedy.images")
    }
    assert not needing_all & {name for name, _ in planned}
    with pytest.raises(UsageError, match="no golden image matches"):
        open_request(Request(EMBEDDED_PTE, images=("nothing_*",)))
