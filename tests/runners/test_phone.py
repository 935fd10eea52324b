"""The folder of `make phone`: it brings everything, and `ssh:` and `adb:` send it to machines that have nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runners.conftest import known
from tests.runners.servers.adb import Phones
from tests.runners.servers.arm import make_empty_root, write_shell
from tests.runners.servers.sshd import HOST, Sshd, find_sshd
from tests.support import EMBEDDED_PTE, FEW_IMAGES, WITHOUT_USE, verify
from verifier.core.errors import RunnerError
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint
from verifier.golden.records import load_golden
from verifier.runner import native as places
from verifier.runner.adb import make_adb_runner
from verifier.runner.native import LOADER, NativeRunner, portable
from verifier.runner.native.portable import make_phone
from verifier.runner.protocol import Bundle, Call
from verifier.runner.qemu import QemuRunner
from verifier.runner.ssh import make_ssh_runner
from verifier.runner.targets import no_transfer

pytestmark = pytest.mark.xdist_group("runner")
ONE_CALL = (Call("token_embedding", (np.array([[5]]),)),)
MODELS = ("cortex-a76", "max,sme=off", "max")
LARGEST_PAGE_BYTES = 16 << 10


@pytest.fixture(scope="module")
def folder(once: Callable[[str, Callable[[Path], None]], Path], emulated: QemuRunner) -> Path:
    """The folder, put together once."""
    return once("phone-folder", lambda made: print(make_phone(made / "phone", emulated.binary))) / "phone"


@pytest.fixture
def found(folder: Path, emulated: QemuRunner, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the targets look for it, and no binary named by anybody."""
    monkeypatch.setattr(places, "PHONE", folder)
    monkeypatch.setattr(places, "ARM_BINARY", emulated.binary)
    monkeypatch.delenv("LLAVA_MAIN_ANDROID", raising=False)
    monkeypatch.delenv("LLAVA_MAIN_AARCH64", raising=False)
    return folder


def _readelf(flags: str, file: Path) -> str:
    return subprocess.run(["aarch64-linux-gnu-readelf", flags, file], capture_output=True, text=True, check=True).stdout


def test_folder_has_every_library_that_is_asked_for(folder: Path) -> None:
    """And every one can be mapped where a page has 16 KiB, as on phones from 2025 on."""
    libraries = {path.name: path for path in (folder / "lib").iterdir()}
    for file in (folder / "llava_main", *libraries.values()):
        assert set(re.findall(r"\(NEEDED\).*\[(.+)\]", _readelf("-d", file))) <= set(libraries)
        aligned = {int(number, 16) for number in re.findall(r"LOAD .* (0x[0-9a-f]+)$", _readelf("-lW", file), re.M)}
        assert min(aligned) >= LARGEST_PAGE_BYTES, file
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 24e6


def test_folder_has_licences_and_sums(folder: Path) -> None:
    """Of ExecuTorch and what is inside it, of Debian's packages, of the decoder; the sums are those of the files."""
    licences = {path.stem for path in (folder / "licences").iterdir()}
    assert {"executorch", "XNNPACK", "stb_image", "libc6-arm64-cross", "LGPL-2.1", "README"} <= licences
    assert "libc6-arm64-cross 2." in (folder / "licences" / "README").read_text()
    done = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


def test_missing_licence_stops_it(emulated: QemuRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is put together that may not be passed on."""
    monkeypatch.setattr(portable, "COMMON", tmp_path)
    with pytest.raises(RunnerError, match="a licence is not found"):
        make_phone(tmp_path / "phone", emulated.binary)
    assert not (tmp_path / "phone").exists()


@pytest.mark.parametrize("cpu", MODELS)
def test_folder_runs_on_every_model_without_a_system(folder: Path, emulated: QemuRunner, cpu: str) -> None:
    """Its own loader starts it; the emulator is given no system to look in."""
    runner = replace(emulated, cpu=cpu, binary=folder / "llava_main")
    assert "-L" not in runner.program
    result = runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
    assert (result.outcome, result.isa) == ("ok", "aarch64"), result.message


def test_start_script_answers_from_anywhere(folder: Path, native: NativeRunner, tmp_path: Path) -> None:
    """`sh run.sh`, from the folder, from another one, through a path with a blank."""
    copy = Path(shutil.copytree(folder, tmp_path / "a phone"))
    (copy / LOADER).write_text('#!/bin/sh\necho "$@"\n')
    for here, script in ((copy, "run.sh"), (tmp_path, "a phone/run.sh")):
        done = subprocess.run(["sh", script, "--about"], cwd=here, capture_output=True, text=True, check=True)
        assert re.fullmatch(r"--library-path \S.*/lib \S.*/llava_main --about\n", done.stdout)


def test_phone_is_sent_the_folder(
    found: Path, emulated: QemuRunner, phones: Phones, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without LLAVA_MAIN_ANDROID; once, by its hash. With it, what it names is sent."""
    monkeypatch.delenv("LLAVA_MAIN_ANDROID")
    monkeypatch.setattr(phones, "shell", (str(write_shell(tmp_path / "sh", str(emulated.emulator), MODELS[0])),))
    heard: list[str] = []
    pieces = []
    for _ in range(2):
        with closing(make_adb_runner("adb", lambda what, done, whole: heard.append(what))) as runner:
            assert runner.isa == "aarch64"
            assert runner.command.startswith(f"env LD_PRELOAD= {phones.folder}/llava-verifier/bin/")
            result = runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
        assert result.outcome == "ok", result.message
        pieces.append(len(heard))
    assert pieces[0] == pieces[1]
    assert {path.name for path in (found / "lib").iterdir()} | {"llava_main"} <= set(heard)
    assert not list((phones.folder / "llava-verifier" / "run").iterdir())


def test_named_binary_wins(found: Path, phones: Phones, native: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAVA_MAIN_ANDROID is not asked whether it is needed."""
    monkeypatch.setenv("LLAVA_MAIN_ANDROID", str(native.binary))
    with closing(make_adb_runner("adb", no_transfer)) as runner:
        assert (runner.isa, LOADER in runner.command) == (os.uname().machine, False)


def test_folder_of_an_older_build_is_refused(found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever built `llava_main` again wants that one tried."""
    newer = tmp_path / "llava_main"
    newer.write_bytes((found / "llava_main").read_bytes() + b"\0")
    monkeypatch.setattr(places, "ARM_BINARY", newer)
    with pytest.raises(RunnerError, match="another llava_main than was built last"):
        places.find_phone()


@pytest.fixture
def empty_board(
    found: Path, emulated: QemuRunner, native: NativeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sshd]:
    """A server that lets into a root with a shell in it, and nothing else."""
    root = tmp_path / "root"
    if find_sshd() is None or not make_empty_root(root, emulated.emulator):
        pytest.skip("needs root, Debian's openssh-server, busybox-static and qemu-user-static")
    server = Sshd(tmp_path / "sshd", shell=write_shell(tmp_path / "shell", "/emulator", MODELS[0], root))
    server.folder.mkdir()
    server.set_up()
    server.start()
    known(server, native, monkeypatch)
    yield server
    server.stop()


def test_empty_board_is_sent_the_folder(empty_board: Sshd, tmp_path: Path) -> None:
    """Over a real sshd: no C library, no loader is there but the folder's; runs leave nothing behind."""
    with closing(make_ssh_runner(f"ssh:{HOST}", no_transfer)) as runner:
        result = runner.run(Bundle(EMBEDDED_PTE, ONE_CALL), timeout_s=60)
        assert (runner.isa, result.outcome) == ("aarch64", "ok"), result.message
    root = tmp_path / "root"
    assert not [path for name in ("lib", "lib64", "usr", "etc", "system") for path in root.glob(name)]
    cache = root / "home" / ".cache" / "llava-verifier"
    assert sorted(path.name for path in cache.iterdir()) == ["bin", "programs", "run"]
    assert not list((cache / "run").iterdir())


@pytest.mark.slow
def test_empty_board_answers_about_a_photograph(empty_board: Sshd, found: Path, tmp_path: Path) -> None:
    """The folder by hand: the seed's command line, from a .jpg to the golden caption."""
    home = tmp_path / "root" / "home"
    shutil.copytree(found, home / "phone")
    for file in (EMBEDDED_PTE, EMBEDDED / "tokenizer.model", EMBEDDED / "images" / "photo_flower.jpg"):
        shutil.copy(file, home)
    words = f"/home/phone/{LOADER} --library-path /home/phone/lib /home/phone/llava_main --model_path=/home/{EMBEDDED_PTE.name}"
    words += " --tokenizer_path=/home/tokenizer.model --image_path=/home/photo_flower.jpg"
    done = subprocess.run([tmp_path / "shell", words], capture_output=True, text=True, check=False, timeout=600)
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    wanted = next(one for one in golden.images if one.name == "photo_flower")
    assert done.stdout == f"ASSISTANT: {wanted.text}\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("cpu", MODELS)
def test_folder_passes_the_gate_on_every_model(
    folder: Path, cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that asks the target, about a picture of each form, with the folder's own C library (`max` has SME, which QEMU 7.2 has wrong)."""
    monkeypatch.setenv("LLAVA_MAIN_AARCH64", str(folder / "llava_main"))
    words = ("--target", f"qemu:{cpu}", "--checks", WITHOUT_USE, "--images", FEW_IMAGES)
    status = verify(EMBEDDED_PTE, *words, "--report", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    if set(report["target"]["instructions"].values()) - {"right"}:
        assert (status, "this machine computes" in report["blame"]["message"]) == (2, True)
    else:
        assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []
        assert status == 0


@pytest.mark.slow
def test_empty_board_is_verified(empty_board: Sshd, tmp_path: Path) -> None:
    """Everything that asks the target, about a picture of each form, over ssh, on a machine with nothing on it."""
    words = ("--target", f"ssh:{HOST}", "--checks", WITHOUT_USE, "--images", FEW_IMAGES)
    status = verify(EMBEDDED_PTE, *words, "--report", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["message"] for c in report["checks"] if c["verdict"] != "pass"] == []
    assert status == 0
    assert report["target"]["isa"] == "aarch64"
    assert {rung["step"]: rung["verdict"] for rung in report["rungs"]}["device"] == "pass"
