"""Golden data: images, their greedy answers in fp32, and the bands that clean artifacts stay in.

A golden belongs to one checkpoint, by SHA-256; a band belongs to one recipe of it. Both carry their provenance.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verifier.core.limits import Limit
from verifier.core.scales import SCALES, Scale
from verifier.errors import GoldenError


class MissingGoldenError(GoldenError):
    """Nobody has made golden data for this checkpoint: the file is not there, which is no fault of anything."""


GOLDEN_SCHEMA = "verifier.golden/1"
TOLERANCE_SCHEMA = "verifier.tolerances/1"
EXPECTATION_SCHEMA = "verifier.expectation/1"
BUDGET_SCHEMA = "verifier.budgets/1"
_LIMIT_BYTES = 16 << 20
_MAKES = {
    GOLDEN_SCHEMA: "python -m verifier.golden add PICTURE --model DIR --reason WHY, for a picture of each kind that users send",
    TOLERANCE_SCHEMA: "python -m verifier.calibrate PTE --model DIR, on a clean export",
    EXPECTATION_SCHEMA: "restore the file from version control",
    BUDGET_SCHEMA: "python -m verifier.budgets PTE",
}
"""The command that makes a file of each kind."""
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


def _read(path: Path, schema: str) -> dict[str, Any]:
    if not path.is_file():
        raise MissingGoldenError(
            f"the checkpoint has no {path.name}",
            expected=path,
            fix=_MAKES[schema],
        )
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        text: dict[str, Any] = json.loads(path.read_bytes(), parse_constant=_no_number)
        if text["schema"] != schema:
            raise ValueError(f"schema {text['schema']!r}, not {schema!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GoldenError(
            "golden data cannot be read", got=error, where=path, fix="restore the file from version control"
        ) from error
    return text


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number: no limit can be made of it")


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise GoldenError("a golden image lies outside its folder", got=name, where=folder)
    return path


def load_golden(folder: Path, checkpoint_sha256: str) -> GoldenSet:
    """The golden set in `folder/golden.json`. Raises `GoldenError` if it is not this checkpoint's."""
    path = folder / "golden.json"
    text = _read(path, GOLDEN_SCHEMA)
    try:
        images = tuple(
            GoldenImage(
                name=str(item["name"]),
                path=_inside(folder, item["file"]),
                sha256=str(item["sha256"]),
                kind=str(item["kind"]),
                question=str(item["question"]),
                ids=tuple(int(i) for i in item["ids"]),
                margins=tuple(float(m) for m in item["margins"]),
                text=str(item["text"]),
            )
            for item in text["images"]
        )
        belongs_to = str(text["checkpoint_sha256"])
        rule = text.get("prompt_rule")
        if rule is not None and not isinstance(rule, dict):
            raise ValueError(f"prompt_rule is {rule!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise GoldenError("golden data cannot be read", got=f"{type(error).__name__}: {error}", where=path) from error
    if belongs_to != checkpoint_sha256:
        raise GoldenError(
            "the golden data belongs to another checkpoint",
            got=belongs_to[:16],
            expected=checkpoint_sha256[:16],
            where=path,
            fix="make golden data for this one",
        )
    if not images or any(len(image.ids) != len(image.margins) or not image.ids for image in images):
        raise GoldenError(
            "golden data is incomplete", got=f"{len(images)} images", expected="ids and margins for each", where=path
        )
    return GoldenSet(path, belongs_to, images, rule)


def load_expectation(model: str | None) -> Expectation | None:
    """The published answer of a checkpoint named by folder or hub id, None if there is none. Raises `GoldenError`."""
    name = Path(model).name if model else ""
    path = _HERE / name / "expectation.json"
    if not name or name in (".", "..") or not path.is_file():
        return None
    text = _read(path, EXPECTATION_SCHEMA)
    try:
        texts = {field: str(text[field]) for field in ("model", "prompt", "image", "begins_with", "provenance")}
        return Expectation(**texts, seq_len=int(text["seq_len"]))
    except (KeyError, TypeError, ValueError) as error:
        raise GoldenError(
            "the expectation cannot be read", got=f"{type(error).__name__}: {error}", where=path
        ) from error


def load_tolerances(folder: Path, checkpoint_sha256: str, recipe: str) -> Tolerances:
    """The bands of a recipe in `folder/tolerances.json`. Raises `GoldenError` if there are none for it."""
    path = folder / "tolerances.json"
    text = _read(path, TOLERANCE_SCHEMA)
    fix = "calibrate a clean export: python -m verifier.calibrate PTE"
    if text.get("checkpoint_sha256") != checkpoint_sha256:
        raise GoldenError(
            "the tolerances belong to another checkpoint",
            got=text.get("checkpoint_sha256"),
            expected=checkpoint_sha256,
            where=path,
            fix=fix,
        )
    try:
        found = text["recipes"].get(recipe)
        if found is None:
            raise GoldenError(
                "this recipe was never calibrated", got=recipe, expected=", ".join(text["recipes"]), where=path, fix=fix
            )
        bands = {
            name: Band(
                name,
                int(b["direction"]),
                {str(k): float(v) for k, v in b["measured"].items()},
                float(b["margin"]),
                {str(k): float(v) for k, v in b.get("wider", {}).items()},
                float(b.get("spread_ci95", (0.0, 0.0))[1]),
            )
            for name, b in found["bands"].items()
        }
        return Tolerances(recipe, bands, found["census"], found["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GoldenError(
            "the tolerances cannot be read", got=f"{type(error).__name__}: {error}", where=path
        ) from error


def load_budget(folder: Path, checkpoint_sha256: str, release: str, target: str) -> dict[str, Budget] | None:
    """The budget of a `release` (recipe and positions) in `folder/budgets.json`: of the file, and of its runs on a kind of target.
    None if nobody recorded one. Raises `GoldenError` for a file that cannot be read or belongs to another checkpoint."""
    path = folder / "budgets.json"
    if not path.is_file():
        return None
    text = _read(path, BUDGET_SCHEMA)
    try:
        if text["checkpoint_sha256"] != checkpoint_sha256:
            raise ValueError(f"it belongs to the checkpoint {text['checkpoint_sha256'][:16]}")
        found = text["releases"].get(release)
        if found is None:
            return None
        figures = found["file"] | found["targets"].get(target, {})
        return {name: Budget(float(each["measured"]), float(each["allowed"])) for name, each in figures.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GoldenError(
            "the budgets cannot be read",
            got=f"{type(error).__name__}: {error}",
            where=path,
            fix="record them again: python -m verifier.budgets PTE",
        ) from error


if __name__ == "__main__":
    from verifier.golden_cli import main

    sys.exit(main())
