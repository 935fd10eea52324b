"""Every runner that can run here, for one shared suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.local import LocalRunner
from runner.native import NativeRunner
from runner.native.build import build
from runner.protocol import Runner


@pytest.fixture(scope="session")
def native(once: Callable[[str, Callable[[Path], None]], Path]) -> NativeRunner:
    """`llava_main`, built from this tree."""
    return NativeRunner(once("native", lambda folder: print(build(folder))) / "llava_main")


@pytest.fixture(params=["local", "native"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """One runner after the other."""
    if request.param == "local":
        return LocalRunner()
    made: NativeRunner = request.getfixturevalue("native")
    return made
