"""How commands start and end: never with status 1 for a reason that is not the artifact's."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import textwrap
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from verifier.core.command import command
from verifier.core.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
SHADOWED = (
    "json",
    "argparse",
    "dataclasses",
    "typing",
    "random",
    "platform",
    "tempfile",
    "numpy",
    "torch",
    "logging",
    "rich",
    "runner",
    "golden",
)
COMMANDS = (
    "verifier.test_pte no.pte",
    "verifier.compare no.pte no.pte",
    "verifier.calibrate no.pte",
    "verifier.budgets no.pte --reason 'a reason'",
    "verifier.golden show --model none",
    "verifier.image_util --image-path no.png --output-path no.pt",
    "verifier.export_llava --model none",
    "verifier.faults --only none",
    "verifier.report no.json",
    "verifier.judge no-evidence",
    "verifier.synth_checkpoint --geometry none --out made",
    "verifier.runner no-bundle",
    "verifier.runner.llava_main --image_path no.npy",
)


def test_a_face_only_starts_a_command() -> None:
    """Every command has a face, which nobody may import, and which holds nothing of its own."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (faces,) = (each["protected_modules"] for each in contracts if each["name"] == "nobody imports a face")
    for line in COMMANDS:
        module = line.split()[0]
        assert module in faces or f"{module}.__main__" in faces
    for face in faces:
        spec = find_spec(face)
        assert spec is not None
        source = Path(str(spec.origin)).read_text()
        assert len(source.splitlines()) <= 10, face
        assert not any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.parse(source).body), face


def _run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)


def _words(line: str) -> list[str]:
    import shlex

    return ["-m", *shlex.split(line)]


ALIKE = (
    "verifier.compare",
    "verifier.calibrate",
    "verifier.budgets",
    "verifier.image_util",
    "verifier.synth_checkpoint",
)
"""Import what others import."""


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=[pytest.mark.slow] if line.split()[0] in ALIKE else []) for line in COMMANDS],
    ids=lambda line: line.split()[0],
)
def test_files_named_like_modules_change_nothing(line: str, tmp_path: Path) -> None:
    """The working folder is looked into last: the refusal is the command's own."""
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('the user file {name}')\n")
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("raise RuntimeError('the user folder')\n")
    done = _run(_words(line), tmp_path)
    assert done.returncode == 2, done.stderr
    assert "the user f" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", COMMANDS[:8], ids=lambda line: line.split()[0])
def test_a_package_that_cannot_be_imported_is_not_verified(line: str, tmp_path: Path) -> None:
    """Wherever a command imports it: at its top, or in its work."""
    (tmp_path / "broken").mkdir()
    for name in ("torch", "numpy", "rich"):
        (tmp_path / "broken" / f"{name}.py").write_text("raise ImportError('no such library')\n")
    done = _run(_words(line), tmp_path, PYTHONPATH=f"{tmp_path / 'broken'}{os.pathsep}{ROOT}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip()


def _script(folder: Path, body: str) -> list[str]:
    path = folder / "script.py"
    head = "import os, signal, sys, time\nfrom verifier.core.command import command\n@command('NOT VERIFIED')\ndef main(arguments=None):\n"
    path.write_text(head + textwrap.indent(textwrap.dedent(body), "    ") + "\nsys.exit(main())\n")
    return [str(path)]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("return 1", 1, ""),
        ("raise MemoryError", 2, "NOT VERIFIED: the verifier itself failed"),
        # Python 3.13.0 does not count a call that leaves an argument to its default: memory would end before the stack
        ("return main.__wrapped__(arguments)", 2, "NOT VERIFIED: the verifier itself failed"),
        ("sys.exit('a library gave up')", 2, "NOT VERIFIED: stopped with 'a library gave up'"),
        ("sys.exit(1)", 2, "NOT VERIFIED: stopped with 1"),
        ("sys.exit(0)", 0, ""),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        # a suite that was started in the background ignores the signal, and so do its children
        (
            "signal.signal(signal.SIGINT, signal.default_int_handler); os.kill(os.getpid(), signal.SIGINT); time.sleep(5)",
            130,
            "interrupted",
        ),
        ("raise GeneratorExit", 2, "NOT VERIFIED: the verifier itself failed"),
    ],
)
def test_what_comes_through_is_a_status(body: str, status: int, said: str, tmp_path: Path) -> None:
    """A verdict, a refusal, out of stack or memory, a library's own exit, an interrupt."""
    done = _run(_script(tmp_path, body), tmp_path)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize(
    ("redirect", "environment"),
    [
        ("", {"PYTHONIOENCODING": "ascii"}),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        (">&-", {}),
        (">&- 2>&- <&-", {}),
        ("> /dev/full", {}),
        ("> /dev/full 2>&1", {}),
        ("| true", {}),
        ("2>&1 | true", {}),
    ],
)
def test_what_cannot_be_printed_does_not_change_the_status(
    redirect: str, environment: dict[str, str], status: int, tmp_path: Path
) -> None:
    """No character, no reader, no disk, no stream at all; rich has an exit of its own for a reader that is gone."""
    body = f"""
        from rich.console import Console
        print("\\u2713 \\u2026 \\udcff" * 50_000)
        Console().print("[green]\\u2713[/]\\n" * 500)
        print("x", file=sys.stderr)
        return {status}
    """
    line = f"set -o pipefail; {sys.executable} {_script(tmp_path, body)[0]} {redirect}"
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, check=False)
    assert done.returncode == status, done.stderr


def test_a_refusal_is_text_of_five_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """In front of it, what it means for the command."""

    @command("NOT VERIFIED")
    def main(arguments: object = None) -> int:
        raise UsageError("this", got="a", expected="b", where="c", fix="d")

    assert main([]) == 2
    assert capsys.readouterr().err == "NOT VERIFIED: this\n  got: a\n  expected: b\n  where: c\n  to fix: d\n"
