"""`python -m tests.bench.reports BASE`: are this tree's reports equal to those of an earlier commit, value by value?

BASE's code makes the artifacts (llava_tiny, two random models, twenty faulty files) once; each tree then judges each of them in a process of
its own. Compared are the exit status, the overall verdict, the checks' order, and of each check what `COMPARED` names.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.bench import report_subjects
from tests.bench.report_subjects import NAMES, QUICK

ROOT = Path(__file__).resolve().parents[2]
COMPARED = ("step", "verdict", "measured", "allowed", "exception")
"""Times and memory stand elsewhere in a report."""
VARYING_DB = {"layers.graph": 10.0}
"""By how many dB the numbers of a check may differ, as they do between runs of one tree: the eager quantized model sums in another order from run to
run (MKL_CBWR moves these numbers, and does not fix them). Seen: 131.4 and 123.0 dB where 56 are allowed, 82.27649 and 82.27645 dB, a limit of 56.1 and 52.8 dB."""


@dataclass(frozen=True)
class Judged:
    """What a tree's gate answered to one artifact. A refused file has no report: no `verdict` and no `results`."""

    status: int
    verdict: str | None = None
    results: tuple[dict[str, Any], ...] = field(default=())

    @classmethod
    def read(cls, saved: dict[str, Any]) -> Judged:
        """From an exit status and a `report.json`."""
        report = saved["report"]
        if report is None:
            return cls(saved["status"])
        texts = {(one["check"], one["case"]): one["message"] for one in report.get("exceptions", ())}
        results = tuple(check | {"exception": texts.get((check["id"], check["case"]))} for check in report["checks"])
        return cls(saved["status"], report["verdict"], results)


def differences(base: Judged, here: Judged) -> list[str]:
    """One line for each difference, `base -> here`; none if the two are equal. NaN is equal to NaN, 1 is not equal to 1.0."""
    found = [
        f"{name}: {_text(old)} -> {_text(new)}"
        for name, old, new in (("exit status", base.status, here.status), ("verdict", base.verdict, here.verdict))
        if old != new
    ]
    before, after = _by_case(base.results), _by_case(here.results)
    found += [f"{' '.join(map(str, key))}: only in the base" for key in before if key not in after]
    found += [f"{' '.join(map(str, key))}: only here" for key in after if key not in before]
    shared, moved = [key for key in before if key in after], [key for key in after if key in before]
    if shared != moved:
        number = next(n for n, (old, new) in enumerate(zip(shared, moved, strict=True)) if old != new)
        found.append(f"order of results: the shared result {number} is {shared[number][:2]} -> {moved[number][:2]}")
    for key in shared:
        found += _values(f"{key[0]} {key[1]}", before[key], after[key])
    return found


def repeated(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Differences of a first run where a second one differs from the base, too, whatever its value."""
    places = {line.partition(" -> ")[0] for line in second}
    return [line for line in first if line.partition(" -> ")[0] in places]


def _by_case(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Results by id, case and, where these two repeat, a number."""
    seen: Counter[tuple[str, str]] = Counter()
    made = {}
    for result in results:
        key = result["id"], result["case"]
        made[*key, seen[key]] = result
        seen[key] += 1
    return made


def _values(place: str, old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    pairs = [(name, old.get(name), new.get(name)) for name in COMPARED]
    tolerance_db = VARYING_DB.get(old["id"], 0.0)
    return [f"{place}: {name} {_text(a)} -> {_text(b)}" for name, a, b in pairs if not _equal(a, b, tolerance_db)]


def _equal(old: Any, new: Any, tolerance_db: float) -> bool:
    """Whether two values are equal to the last bit; numbers in dB, to within a tolerance."""
    if _text(old) == _text(new):
        return True
    if not tolerance_db or not isinstance(old, dict) or not isinstance(new, dict) or old.keys() != new.keys():
        return False
    return all(
        _text(old[key]) == _text(new[key])
        or (
            key.endswith("_db")
            and all(isinstance(x, float) for x in (old[key], new[key]))
            and abs(old[key] - new[key]) <= tolerance_db
        )
        for key in old
    )


def _text(value: Any) -> str:
    """Every bit of a number, and the type; the order of keys does not count."""
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Bench:
    """The base's code in `folder`/tree, artifacts in `folder`/subjects, the base's answers in `folder`/reports."""

    folder: Path
    wrap: tuple[str, ...]

    @property
    def tree(self) -> Path:
        """The base's code."""
        return self.folder / "tree"

    def check_out(self, base: str) -> None:
        """Put the files of a commit into `tree`. Raises `RuntimeError` if another commit's are there."""
        words = ["git", "rev-parse", "--verify", f"{base}^{{commit}}"]
        commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        mark = self.folder / "commit"
        if mark.is_file():
            if mark.read_text().strip() != commit:
                raise RuntimeError(f"{self.folder} holds {mark.read_text().strip()}, not {commit}: give another --keep")
            return
        self.tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.Popen(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", str(self.tree)], stdin=archive.stdout, check=True)
        if archive.wait() != 0:
            raise RuntimeError(f"git archive {commit} failed")
        mark.write_text(commit + "\n")

    def make(self, names: Sequence[str]) -> None:
        """Make by the base's code those artifacts that are not there. Raises `CalledProcessError`."""
        subjects = self.folder / "subjects"
        missing = [name for name in names if not (subjects / name / "arguments.json").is_file()]
        if missing:
            script = str(Path(report_subjects.__file__).resolve())
            words = [*self.wrap, sys.executable, "-P", script, str(subjects), *missing]
            subprocess.run(words, cwd=self.tree, env=_environment(self.tree), check=True, stdout=subprocess.DEVNULL)

    def judge(self, tree: Path, name: str) -> dict[str, Any]:
        """Exit status, report (None if the file was refused) and what a tree's gate printed."""
        arguments = json.loads((self.folder / "subjects" / name / "arguments.json").read_text())
        with tempfile.TemporaryDirectory(prefix="verifier-bench-") as place:
            path = Path(place) / "report.json"
            words = [*self.wrap, sys.executable, "-m", "verifier.test_pte", "--quiet", "--json", str(path), *arguments]
            done = subprocess.run(words, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False)
            report = json.loads(path.read_text()) if path.is_file() else None
        return {"status": done.returncode, "report": report, "printed": (done.stdout + done.stderr)[-2000:]}

    def base(self, name: str) -> dict[str, Any]:
        """The same by the base, kept."""
        path = self.folder / "reports" / f"{name}.json"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".part").write_text(json.dumps(self.judge(self.tree, name)))
            path.with_suffix(".part").replace(path)
        read: dict[str, Any] = json.loads(path.read_text())
        return read

    def compare(self, name: str, base: Judged) -> tuple[list[str], list[str]]:
        """The differences of this tree from the base, and those that a second run does not show: no change of the code gives them."""
        here = self.judge(ROOT, name)
        lines = differences(base, Judged.read(here))
        if not lines:
            return [], []
        lasting = repeated(lines, differences(base, Judged.read(self.judge(ROOT, name))))
        said = [f"printed here: {here['printed']}"] if lasting and here["report"] is None else []
        return lasting + said, [line for line in lines if line not in lasting]


def _environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}


def _chosen(options: argparse.Namespace) -> list[str]:
    globs = [glob for glob in options.only.split(",") if glob]
    offered = QUICK if options.quick else NAMES
    chosen = [name for name in offered if not globs or any(fnmatchcase(name, glob) for glob in globs)]
    if not chosen:
        raise RuntimeError(f"no artifact matches {options.only}: {', '.join(offered)}")
    return chosen


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m tests.bench.reports", description=__doc__)
    made.add_argument("base", help="the commit to compare with")
    made.add_argument("--only", default="", help="only these artifacts: comma-separated globs of their names")
    made.add_argument("--quick", action="store_true", help="llava_tiny and four faults")
    made.add_argument("--keep", type=Path, metavar="DIR", help="keep BASE's code, artifacts and reports, or use those")
    made.add_argument("--base-only", action="store_true", help="make and judge by BASE alone, for a later --keep")
    made.add_argument("--wrap", default="", metavar="COMMAND", help="run each verification by it: 'nice', 'flock FILE'")
    return made


def main() -> int:
    """Print a table, and behind each artifact its differences; returns 1 if there is one."""
    options = parser().parse_args()
    names, different = _chosen(options), 0
    with nullcontext(options.keep) if options.keep else tempfile.TemporaryDirectory(prefix="verifier-bench-") as place:
        bench = Bench(Path(place).resolve(), tuple(shlex.split(options.wrap)))
        bench.check_out(options.base)
        bench.make(names)
        print(f"{'artifact':32} {'status':>6} {'results':>7} {'differing':>9} {'seconds':>7}")
        for name in names:
            begun = time.perf_counter()
            base = Judged.read(bench.base(name))
            lines, varying = ([], []) if options.base_only else bench.compare(name, base)
            different += len(lines)
            counted = f"{base.status:6} {len(base.results):7} {len(lines):9} {time.perf_counter() - begun:7.0f}"
            print(
                "\n    ".join([f"{name:32} {counted}", *lines, *(f"not in a second run: {x}" for x in varying)]),
                flush=True,
            )
    print(f"{different} differences in {len(names)} artifacts")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
