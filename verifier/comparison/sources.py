"""Where the two sides of a comparison come from: a report that was saved, or a file that is verified now."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from statistics import median

from verifier.core.errors import UsageError
from verifier.core.progress import Progress, hushed
from verifier.core.records import JsonObject
from verifier.families.answering import load_sample
from verifier.gather.children import measure_speed
from verifier.gather.opening import Opened, Request, open_request
from verifier.pipeline import verify
from verifier.report.as_json import Report, read_report, report

TURNS = 3


def read_side(path: Path, *, model: str | None, target: str, progress: Progress) -> Report:
    """The report of one side: read, if the name ends in `.json`, or made by verifying the file. Raises `VerifierError`."""
    if path.suffix == ".json":
        return read_report(path)
    return report(verify(Request(path, model, target), progress))


def read_both(
    old: Path, new: Path, *, model: str | None, target: str, speed: bool, progress: Progress
) -> tuple[Report, Report]:
    """Both reports. With `speed` both files are run in turns, so that a machine that slows down slows down both."""
    if speed and ".json" in (old.suffix, new.suffix):
        raise UsageError(
            "speed cannot be measured side by side", got="a report", expected="two .pte files", fix="leave out --speed"
        )
    sides = [read_side(path, model=model, target=target, progress=progress) for path in (old, new)]
    if speed:
        for side, figures in zip(sides, _in_turns([old, new], model, target, progress), strict=True):
            side["facts"]["speed"] = figures
    return sides[0], sides[1]


def _in_turns(paths: list[Path], model: str | None, target: str, progress: Progress) -> list[JsonObject]:
    """Median of each figure over `TURNS` turns."""
    found: list[list[dict[str, float]]] = [[] for _ in paths]
    with hushed() as stream:
        progress.stream = stream
        for turn in range(TURNS):
            for side, path in enumerate(paths):
                with progress.stage(f"time and memory of {path.name}, {turn + 1} of {TURNS}"):
                    opened = open_request(Request(path, model, target))
                    with closing(opened.runner):
                        found[side].append(_once(opened))
    return [{name: median(each[name] for each in turns) for name in turns[0]} for turns in found]


def _once(opened: Opened) -> dict[str, float]:
    square = opened.recipe.static_image_shape
    image = load_sample(opened.golden.images[0], opened.tokenizer, opened.family, square=square).image
    speed = measure_speed(opened, opened.family.embedding_table(), image)
    figures = {name: getattr(speed, name) for name in ("prefill_loops", "decode_loops", "peak_rss_bytes")}
    missing = [name for name, value in figures.items() if value is None]
    if missing:
        raise UsageError(
            "speed could not be measured",
            got=f"{speed.result.outcome} {speed.result.message}",
            where=opened.artifact.path,
        )
    return figures
