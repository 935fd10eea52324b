"""`verifier.core.upstream` names everything that a new version of another package may move, and nothing else does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from verifier.core import upstream
from verifier.core.errors import UpstreamError
from verifier.core.upstream import SEEN, File, Name, requirement

ROOT = Path(__file__).parents[2]
TABLE: dict[str, Name | File] = {n: found for n, found in vars(upstream).items() if isinstance(found, Name | File)}
PACKAGES = ("executorch", "torchao", "transformers")
UPSTREAMS_OWN = ROOT / "tests/bench/upstream.py"
"""Runs upstream's exporter for LLaVA, which cannot be imported without the stand-in for torchvision that it makes."""
OTHERS = {
    "_exit": "os",
    "_extra_files": "torch",
    "_asdict": "typing",
    "_replace": "typing",
    "_schema": "torch",
    "_check": "torch",
    "_weight": "torch",
}
"""Private words of packages that are not looked at here."""


@cache
def _modules() -> dict[Path, ast.Module]:
    """All of this project but the table itself."""
    links = (ROOT / "verifier/runner", ROOT / "verifier/embedded")
    paths = (path for folder in ("verifier", "runner", "tests", "golden") for path in (ROOT / folder).rglob("*.py"))
    ours = (path for path in paths if not any(path.is_relative_to(link) for link in links))
    return {
        p: ast.parse(p.read_text()) for p in ours if p not in (Path(upstream.__file__), UPSTREAMS_OWN, Path(__file__))
    }


def _shown(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def _uses() -> Iterator[tuple[str, str]]:
    """The constant of the table, and where it is read."""
    for path, tree in _modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "upstream" and node.attr in TABLE:
                yield node.attr, _shown(path, node)


def test_every_name_is_there() -> None:
    """What an installed version lacks, and who uses it."""
    missing = []
    for constant, name in TABLE.items():
        try:
            name.resolve()
        except UpstreamError as error:
            used = ", ".join(place for found, place in _uses() if found == constant)
            missing.append(f"{name.package} {version(name.package)}: {error}\n  why: {name.why}\n  used in: {used}")
    assert not missing, f"{len(missing)} of {len(TABLE)} names have moved\n" + "\n".join(missing)


@pytest.mark.parametrize("package", SEEN)
def test_the_installed_version_was_seen(package: str) -> None:
    """A new version is entered in `SEEN` once all names are found in it; the last one is what CI installs."""
    installed = version(package).partition("+")[0]
    assert installed in SEEN[package], f"{package} {installed}: add it to SEEN if `test_every_name_is_there` passes"
    assert requirement(package).replace("_", "-") in (ROOT / "constraints.txt").read_text().splitlines()


def test_a_name_that_moved_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Package, name, versions and what to install."""
    for gone in (Name("executorch.version:gone", "a test"), Name("executorch.version", "a test", uses=("gone",))):
        with pytest.raises(
            UpstreamError, match=r"installed executorch lacks.*\n.*'gone'.*\n.*version.*1\.5\.1"
        ) as caught:
            gone.resolve()
        assert caught.value.fix == "pip install executorch==1.5.1"
    for lacking in (
        File("executorch", "gone.fbs", "a test"),
        File("executorch", upstream.THREAD_POOL.path, "", symbol="_gone"),
    ):
        with pytest.raises(UpstreamError, match=r"gone"):
            lacking.resolve()
    monkeypatch.setitem(SEEN, "nobodys_package", ("1",))
    with pytest.raises(UpstreamError, match=r"nobodys_package is not installed"):
        File("nobodys_package", "x", "a test").resolve()


def test_every_name_is_used() -> None:
    """A name that nobody asks for any more leaves the table."""
    assert set(TABLE) - {name for name, _ in _uses()} - {"THREAD_POOL", "GET_THREAD_POOL"} == set()  # those two: C++


def test_importing_the_table_imports_no_package() -> None:
    """Commands start with it."""
    code = f"import verifier.core.upstream, sys; print(sorted({{*sys.modules}} & {{*{[*SEEN, 'numpy']}}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def _imports(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Dotted names: `a.b.c` for `from a.b import c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def _is_public(dotted: str) -> bool:
    """Whether a name stands in a package, or right below one of its public modules, and is no module itself."""
    package, *path = dotted.split(".")
    private = any(part.startswith("_") for part in path)
    if package not in PACKAGES:
        return not (private and package == "torch")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    place = Path(spec.submodule_search_locations[0], *path)
    face = place.parent / "__init__.py"
    exported = face.is_file() and f'"{place.name}"' in face.read_text()  # a function and a folder may share a name
    is_module = len(path) > 1 and (place.is_dir() or any(place.parent.glob(f"{place.name}.*")))
    return len(path) <= 2 and not private and (exported or not is_module)


def test_nothing_else_imports_a_private_or_deep_name() -> None:
    """Of ExecuTorch, torchao and transformers; of torch private ones only."""
    assert not _is_public("executorch.exir.schema") and _is_public("executorch.exir.EdgeProgramManager")
    found = [(_shown(path, node), name) for path, tree in _modules().items() for node, name in _imports(tree)]
    assert [f"{place}: {name}" for place, name in found if not _is_public(name)] == []
    assert len(found) > 1000


def _words(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Attributes that are read, and names of arguments that are given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node, node.arg


def _defined(tree: ast.Module) -> set[str]:
    nodes = list(ast.walk(tree))
    made = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    made |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    made |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    return made | {node.arg for node in nodes if isinstance(node, ast.arg)}


def test_nothing_else_uses_a_private_attribute() -> None:
    """A private attribute or argument is one that we define, or stands in the table."""
    trees = {path: tree for path, tree in _modules().items() if not path.is_relative_to(ROOT / "tests")}
    known = set[str]().union(*map(_defined, trees.values()), *(x.uses for x in TABLE.values() if isinstance(x, Name)))
    foreign = [
        f"{_shown(path, node)}: {word}"
        for path, tree in trees.items()
        for node, word in _words(tree)
        if word.startswith("_") and not word.endswith("__") and word not in known | set(OTHERS)
    ]
    assert not foreign, "\n".join(foreign)
