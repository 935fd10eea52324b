"""`adb:` against a server of our own: the protocol is adb's, the phone is a folder."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.runners.servers.adb import Phones
from tests.support import EMBEDDED_PTE, verify
from verifier.core.errors import RunnerError
from verifier.runner.adb import make_adb_runner
from verifier.runner.protocol import Bundle, Call
from verifier.runner.targets import make_runner, no_transfer

pytestmark = pytest.mark.xdist_group("runner")
ONE_CALL = (Call("token_embedding", (np.array([[5]]),)),)


@pytest.mark.parametrize(
    ("states", "target", "said"),
    [
        ({}, "adb", "no phone is connected"),
        ({"a": "device", "b": "device"}, "adb", "several phones are connected"),
        ({"a": "device"}, "adb:b", "this phone is not connected"),
        ({"a": "unauthorized"}, "adb", "accept the key"),
        ({"a": "offline"}, "adb", "does not answer"),
    ],
)
def test_phone_that_cannot_be_used_is_named(
    phones: Phones,
    states: dict[str, str],
    target: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2, and what to do at the phone."""
    monkeypatch.setattr(phones, "states", states)
    assert verify(EMBEDDED_PTE, "--target", target) == 2
    assert said in capsys.readouterr().err


def test_one_of_several_phones_is_chosen(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its serial number; its thermal status and free memory come with the result."""
    monkeypatch.setattr(phones, "states", {"a": "device", "b": "device"})
    monkeypatch.setattr(phones, "thermal_status", 3)
    with closing(make_adb_runner("adb:b", no_transfer)) as runner:
        result = runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
    assert result.outcome == "ok"
    assert result.conditions["thermal_status"] == 3
    assert result.conditions["free_memory_bytes"] > 0
    assert not list((phones.folder / "llava-verifier" / "run").iterdir())


def test_full_phone_is_named(phones: Phones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before gigabytes are sent, and when the sync service says so."""
    monkeypatch.setattr(phones, "states", {"a": "device"})
    copy = tmp_path / "copy.pte"  # not there yet
    copy.write_bytes(EMBEDDED_PTE.read_bytes() + b"\0")
    with closing(make_adb_runner("adb", no_transfer)) as runner:
        monkeypatch.setattr(phones, "free_bytes", 4096)
        with pytest.raises(RunnerError, match="no space is left on the device"):
            runner.run(Bundle(copy, ONE_CALL), timeout_s=60)
        monkeypatch.setattr(phones, "free_bytes", None)
        monkeypatch.setattr(phones, "refuse_bytes", 100)
        with pytest.raises(RunnerError, match="the phone refused a file"):
            runner.run(Bundle(copy, ONE_CALL), timeout_s=60)


def test_missing_binary_says_what_to_build(phones: Phones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for phones, or one of the user's own."""
    monkeypatch.delenv("LLAVA_MAIN_ANDROID")
    monkeypatch.setattr("verifier.runner.native.PHONE", tmp_path)
    with pytest.raises(RunnerError, match=r"(?s)LLAVA_MAIN_ANDROID.*make phone"):
        make_runner("adb")


def test_server_that_does_not_run_is_named(monkeypatch: pytest.MonkeyPatch, phones: Phones) -> None:
    """No adb on this machine, or none that starts."""
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "1")
    monkeypatch.setenv("ADBUTILS_ADB_PATH", "/bin/false")
    with pytest.raises(RunnerError, match="adb server cannot be reached"):
        make_runner("adb")
