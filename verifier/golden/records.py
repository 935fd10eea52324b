"""What lies beside a checkpoint: golden images with their greedy answers in fp32, a published answer, and budgets.

A golden belongs to one checkpoint, by SHA-256; a budget belongs to one release of it. Both carry their provenance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from verifier.core.errors import GoldenError
from verifier.core.records import JsonObject, read_record


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
_HERE = Path(__file__).parents[1] / "embedded"


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
    prompt_rule: JsonObject | None = None
    """How the tokenizer spelled the prompts that were answered; None in files from before this was recorded."""
    packaged: bool = False
    """Whether the images are those of the package, which stand in where nobody has made a golden set. They have no ids until they are answered."""


@dataclass(frozen=True)
class GoldenOrigin:
    """Where the golden answers of a run came from: the set beside the checkpoint (`file`), or pictures of the package (`package`), answered by
    the fp32 reference: so many `computed` in this run, and so many `kept` from earlier ones in the folder `cache`. `problem` is why they were not
    kept. `none` if no check asked for answers."""

    source: Literal["file", "package", "none"] = "none"
    images: int = 0
    computed: int = 0
    kept: int = 0
    cache: str = ""
    problem: str = ""


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
class Budget:
    """What a clean artifact measured, and the most that a release may; the unit is in the figure's name."""

    measured: float
    allowed: float


def read_stored(path: Path, schema: str, parse: Callable[[JsonObject], T]) -> T:
    """What `parse` makes of a record. Raises `MissingGoldenError` if there is none, `GoldenError` if it cannot be read."""
    if not path.is_file():
        raise MissingGoldenError(f"the checkpoint has no {path.name}", expected=path, fix=_MAKES[schema])
    fix = f"restore the file from version control, or make it again: {_MAKES[schema]}"
    return read_record(path, parse, what=f"{path.name} cannot be read", error=GoldenError, schema=schema, fix=fix)


def stored(path: Path, schema: str) -> JsonObject:
    """A record as it is, for those who add to it; empty if there is none yet. Raises `GoldenError`."""
    return read_stored(path, schema, dict) if path.is_file() else {}


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise GoldenError("a golden image lies outside its folder", got=name, where=folder)
    return path


def load_golden(folder: Path, checkpoint_sha256: str) -> GoldenSet:
    """The golden set in `folder/golden.json`. Raises `GoldenError` if it is not this checkpoint's."""
    path = folder / "golden.json"
    golden = read_stored(path, GOLDEN_SCHEMA, lambda record: _golden_set(record, path))
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


def _golden_set(record: JsonObject, path: Path) -> GoldenSet:
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
    return read_stored(path, EXPECTATION_SCHEMA, _expectation)


def _expectation(record: JsonObject) -> Expectation:
    texts = {field: str(record[field]) for field in ("model", "prompt", "image", "begins_with", "provenance")}
    return Expectation(**texts, seq_len=int(record["seq_len"]))


def load_budget(folder: Path, checkpoint_sha256: str, release: str, target: str) -> dict[str, Budget] | None:
    """The budget of a `release` (recipe and positions) in `folder/budgets.json`: of the file, and of its runs on a kind of target.
    None if nobody recorded one. Raises `GoldenError` for a file that cannot be read or belongs to another checkpoint."""

    def parse(record: JsonObject) -> dict[str, Budget] | None:
        if record["checkpoint_sha256"] != checkpoint_sha256:
            raise ValueError(f"it belongs to the checkpoint {record['checkpoint_sha256'][:16]}")
        found = record["releases"].get(release)
        if found is None:
            return None
        figures = found["file"] | found["targets"].get(target, {})
        return {name: Budget(float(each["measured"]), float(each["allowed"])) for name, each in figures.items()}

    path = folder / "budgets.json"
    return read_stored(path, BUDGET_SCHEMA, parse) if path.is_file() else None
