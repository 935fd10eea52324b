"""Every runner that can run here, for one shared suite."""

from __future__ import annotations

import pytest

from runner.local import LocalRunner
from runner.protocol import Runner


@pytest.fixture(params=["local", "native", "qemu"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """One runner after the other."""
    if request.param == "local":
        return LocalRunner()
    made: Runner = request.getfixturevalue({"native": "native", "qemu": "emulated"}[request.param])
    return made
