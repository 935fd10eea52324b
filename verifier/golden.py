"""Golden data: images, their greedy answers in fp32, and the bands that clean artifacts stay in.

A golden belongs to one checkpoint, by SHA-256; a band belongs to one recipe of it. Both carry their provenance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from verifier.core.limits import Limit
from verifier.core.records import read_record
from verifier.core.scales import SCALES, Scale
from verifier.errors import GoldenError


class MissingGoldenError(GoldenError):
    """Nobody has made golden data for this checkpoint: the file is not there, which is no fault of anything."""


GOLDEN_SCHEMA = "verifier.golden/1"
TOLERANCE_SCHEMA = "verifier.tolerances/1"
EXPECTATION_SCHEMA = "verifier.expectation/1"
BUDGET_SCHEMA = "verifier.budgets/1"
_MAKES = {
    GOLDEN_SCHEMA: "python -m verifier.golden add PICTURE --model DIR --reason WHY, for a picture of each kind that users send",
    TOLERANCE_SCHEMA: "python -m verifier.calibrate PTE --model DIR, on a clean export",
    EXPECTATION_SCHEMA: "restore the file from version control",
    BUDGET_SCHEMA: "python -m verifier.budgets PTE",
}
"""The command that makes a file of each kind."""
T = TypeVar("T")
_HERE = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class GoldenImage:
    """One image and the fp32 model's greedy answer: ids up to and with EOS, and the top-2 logit margin at each."""

    name: str
    path: Path
    sha256: str
    kind: str
    question: str
    ids: tuple[int, ...]
    margins: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class GoldenSet:
    """All golden images of a checkpoint."""

    path: Path
    checkpoint_sha256: str
    images: tuple[GoldenImage, ...]
    prompt_rule: dict[str, Any] | None = None
    """How the tokenizer spelled the prompts that were answered; None in files from before this was recorded."""


@dataclass(frozen=True)
class Expectation:
    """A published answer of a checkpoint that is not here: how it begins, to which prompt and `image`, and its provenance."""

    model: str
    prompt: str
    seq_len: int
    image: str
    begins_with: str
    provenance: str


@dataclass(frozen=True)
class Band:
    """What a clean artifact measured, per case, and how far from it another clean one may lie: `margin`, or more for cases that were
    seen to move more (`wider`). `spread` is how far equally clean artifacts lie apart: the upper end of the interval of its rms.

    `direction` +1: smaller is a fault (SQNR); -1: larger is a fault (KL). Units are those of the metric.
    """

    metric: str
    direction: int
    measured: dict[str, float]
    margin: float
    wider: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0

    def allowed(self, case: str) -> float | None:
        """The bound for a case, None if it was never measured."""
        value = self.measured.get(case)
        return None if value is None else value - self.direction * self.wider.get(case, self.margin)

    def limit(self, case: str) -> Limit | None:
        """The bound for a case as a limit, None if it was never measured."""
        bound = self.allowed(case)
        return None if bound is None else self._limit(bound)

    @property
    def loosest(self) -> Limit:
        """The bound of the case that is allowed the most."""
        bounds = [bound for case in self.measured if (bound := self.allowed(case)) is not None]
        return self._limit(min(bounds) if self.direction > 0 else max(bounds))

    def _limit(self, bound: float) -> Limit:
        scale = SCALES.get(self.metric, Scale("ratio", "least" if self.direction > 0 else "most"))
        return scale.limit(self.metric, bound)


@dataclass(frozen=True)
class Tolerances:
    """Bands of one recipe, and the instruction census that belongs to it."""

    recipe: str
    bands: dict[str, Band]
    census: dict[str, dict[str, int]]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What a clean artifact measured, and the most that a release may; the unit is in the figure's name."""

    measured: float
    allowed: float


def _read(path: Path, schema: str, parse: Callable[[dict[str, Any]], T]) -> T:
    """What `parse` makes of a record. Raises `MissingGoldenError` if there is none, `GoldenError` if it cannot be read."""
    if not path.is_file():
        raise MissingGoldenError(f"the checkpoint has no {path.name}", expected=path, fix=_MAKES[schema])
    fix = f"restore the file from version control, or make it again: {_MAKES[schema]}"
    return read_record(path, parse, what=f"{path.name} cannot be read", error=GoldenError, schema=schema, fix=fix)


def stored(path: Path, schema: str) -> dict[str, Any]:
    """A record as it is, for those who add to it; empty if there is none yet. Raises `GoldenError`."""
    return _read(path, schema, dict) if path.is_file() else {}


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise GoldenError("a golden image lies outside its folder", got=name, where=folder)
    return path


def load_golden(folder: Path, checkpoint_sha256: str) -> GoldenSet:
    """The golden set in `folder/golden.json`. Raises `GoldenError` if it is not this checkpoint's."""
    path = folder / "golden.json"
    golden = _read(path, GOLDEN_SCHEMA, lambda record: _golden_set(record, path))
    if golden.checkpoint_sha256 != checkpoint_sha256:
        raise GoldenError(
            "the golden data belongs to another checkpoint",
            got=golden.checkpoint_sha256[:16],
            expected=checkpoint_sha256[:16],
            where=path,
            fix="make golden data for this one",
        )
    if not golden.images or any(len(image.ids) != len(image.margins) or not image.ids for image in golden.images):
        raise GoldenError(
            "golden data is incomplete",
            got=f"{len(golden.images)} images",
            expected="ids and margins for each",
            where=path,
        )
    return golden


def _golden_set(record: dict[str, Any], path: Path) -> GoldenSet:
    images = tuple(
        GoldenImage(
            name=str(item["name"]),
            path=_inside(path.parent, item["file"]),
            sha256=str(item["sha256"]),
            kind=str(item["kind"]),
            question=str(item["question"]),
            ids=tuple(int(i) for i in item["ids"]),
            margins=tuple(float(m) for m in item["margins"]),
            text=str(item["text"]),
        )
        for item in record["images"]
    )
    rule = record.get("prompt_rule")
    if rule is not None and not isinstance(rule, dict):
        raise ValueError(f"prompt_rule is {rule!r}")
    return GoldenSet(path, str(record["checkpoint_sha256"]), images, rule)


def load_expectation(model: str | None) -> Expectation | None:
    """The published answer of a checkpoint named by folder or hub id, None if there is none. Raises `GoldenError`."""
    name = Path(model).name if model else ""
    path = _HERE / name / "expectation.json"
    if not name or name in (".", "..") or not path.is_file():
        return None
    return _read(path, EXPECTATION_SCHEMA, _expectation)


def _expectation(record: dict[str, Any]) -> Expectation:
    texts = {field: str(record[field]) for field in ("model", "prompt", "image", "begins_with", "provenance")}
    return Expectation(**texts, seq_len=int(record["seq_len"]))


def load_tolerances(folder: Path, checkpoint_sha256: str, recipe: str) -> Tolerances:
    """The bands of a recipe in `folder/tolerances.json`. Raises `GoldenError` if there are none for it."""
    path = folder / "tolerances.json"
    fix = "calibrate a clean export: python -m verifier.calibrate PTE"

    def parse(record: dict[str, Any]) -> Tolerances:
        if record.get("checkpoint_sha256") != checkpoint_sha256:
            raise GoldenError(
                "the tolerances belong to another checkpoint",
                got=record.get("checkpoint_sha256"),
                expected=checkpoint_sha256,
                where=path,
                fix=fix,
            )
        found = record["recipes"].get(recipe)
        if found is None:
            known = ", ".join(record["recipes"])
            raise GoldenError("this recipe was never calibrated", got=recipe, expected=known, where=path, fix=fix)
        bands = {name: _band(name, band) for name, band in found["bands"].items()}
        return Tolerances(recipe, bands, found["census"], found["provenance"])

    return _read(path, TOLERANCE_SCHEMA, parse)


def _band(name: str, record: dict[str, Any]) -> Band:
    return Band(
        name,
        int(record["direction"]),
        {str(case): float(value) for case, value in record["measured"].items()},
        float(record["margin"]),
        {str(case): float(value) for case, value in record.get("wider", {}).items()},
        float(record.get("spread_ci95", (0.0, 0.0))[1]),
    )


def load_budget(folder: Path, checkpoint_sha256: str, release: str, target: str) -> dict[str, Budget] | None:
    """The budget of a `release` (recipe and positions) in `folder/budgets.json`: of the file, and of its runs on a kind of target.
    None if nobody recorded one. Raises `GoldenError` for a file that cannot be read or belongs to another checkpoint."""

    def parse(record: dict[str, Any]) -> dict[str, Budget] | None:
        if record["checkpoint_sha256"] != checkpoint_sha256:
            raise ValueError(f"it belongs to the checkpoint {record['checkpoint_sha256'][:16]}")
        found = record["releases"].get(release)
        if found is None:
            return None
        figures = found["file"] | found["targets"].get(target, {})
        return {name: Budget(float(each["measured"]), float(each["allowed"])) for name, each in figures.items()}

    path = folder / "budgets.json"
    return _read(path, BUDGET_SCHEMA, parse) if path.is_file() else None


if __name__ == "__main__":
    from verifier.golden_cli import main

    sys.exit(main())
