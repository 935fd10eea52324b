"""Every runner that can run here, for one shared suite; servers that runners talk to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.runners.one_node import Traced
from tests.runners.servers.adb import Phones
from tests.runners.servers.sshd import HOST, Sshd, find_sshd
from verifier.runner.adb import make_adb_runner
from verifier.runner.local import LocalRunner
from verifier.runner.native import NativeRunner
from verifier.runner.protocol import Runner
from verifier.runner.ssh import make_ssh_runner
from verifier.runner.targets import no_transfer


@pytest.fixture
def traced(request: pytest.FixtureRequest, where: str) -> Traced:
    """Programs as the runtime ran them, by the name of their fixture."""
    found: Traced = request.getfixturevalue(where)
    return found


def _started(folder: Path) -> Sshd:
    if find_sshd() is None:
        pytest.skip("needs Debian's openssh-server")
    server = Sshd(folder)
    server.set_up()
    server.start()
    return server


def known(server: Sshd, native: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's end: a home that knows the server, and a `llava_main` to send there."""
    monkeypatch.setenv("HOME", str(server.client))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setenv("LLAVA_MAIN", str(native.binary))


@pytest.fixture
def sshd(tmp_path: Path, native: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """A server for one test, that it may maltreat."""
    (tmp_path / "sshd").mkdir()
    server = _started(tmp_path / "sshd")
    known(server, native, monkeypatch)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lasting_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server for all tests that do it no harm."""
    server = _started(tmp_path_factory.mktemp("sshd"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def lasting_phones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phones]:
    """A server of phones, one of them connected."""
    server = Phones(tmp_path_factory.mktemp("phone"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def phones(lasting_phones: Phones, native: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> Phones:
    """The server of phones as the client finds it, and a `llava_main` that runs on them."""
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(lasting_phones.port))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    monkeypatch.setenv("LLAVA_MAIN_ANDROID", str(native.binary))
    return lasting_phones


@pytest.fixture(params=["local", "native", "qemu", "ssh", "adb"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """One runner after the other."""
    if request.param == "local":
        yield LocalRunner()
    elif request.param == "ssh":
        known(request.getfixturevalue("lasting_sshd"), request.getfixturevalue("native"), monkeypatch)
        with closing(make_ssh_runner(f"ssh:{HOST}", no_transfer)) as made:
            yield made
    elif request.param == "adb":
        request.getfixturevalue("phones")
        with closing(make_adb_runner("adb", no_transfer)) as made:
            yield made
    else:
        yield request.getfixturevalue({"native": "native", "qemu": "emulated"}[request.param])
