"""`python -m verifier.calibrate PTE --variant PTE ...`: measure a clean export and write the bands that it must stay in.

Only comparisons of 4-bit with fp32 need this. A band is what the clean file measured, case by case, and a margin of several
times the spread between equally clean exports that differ in nothing but the images their int8 ranges come from. Runs of
one file are repeated with `--repeats`; they have not differed yet. `layers.kernel`, `layers.constants` and `layers.graph`
need no calibration: their limits are derived.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from verifier.audit.run import audit_weights
from verifier.backends.calls import census_of
from verifier.checks.blocks import PROFILE, VISION, worst_by_block
from verifier.checks.greedy import NOISE, margin_noise
from verifier.checks.logits import all_logits, case_measures, distribution_measures
from verifier.checks.vision import channel_center, compare_about, vision_measures
from verifier.commands.variants import CLEAN, EXPORT_AGAIN, require_clean, require_variants
from verifier.core.command import command
from verifier.core.compare import Difference, Mismatch, compare, compare_all
from verifier.core.errors import GoldenError, UsageError
from verifier.core.files import replacing
from verifier.core.limits import limit
from verifier.core.progress import OnProgress, Progress, hushed, no_progress
from verifier.core.records import JsonObject
from verifier.core.scales import SCALES
from verifier.export.manifest import cpu_kind, package_versions
from verifier.families.answering import answer_samples
from verifier.families.definition import Definition
from verifier.families.samples import Answered, Sample
from verifier.gather.opening import Opened, Request, open_request
from verifier.gather.schedule import AnswerSamples, gather
from verifier.golden.records import TOLERANCE_SCHEMA, stored
from verifier.ladder.evidence import BlockError
from verifier.ladder.gather import against_fp32, run_traced
from verifier.measures.channels import ChannelError, worst_channel
from verifier.measures.evidence import Evidence, golden_folder
from verifier.pipeline import second_look

SPREADS, UPPER_SPREADS = limit("calibrate.spreads").value, limit("calibrate.upper_spreads").value
BOOTSTRAP_LEAST, WORST = limit("calibrate.bootstrap_least"), limit("calibrate.worst").value
FLOOR = limit("calibrate.floor").value
RESAMPLES = 4000
"""Of the bootstrap: effort, not a limit. Its interval of 95 % moves by less than 2 % from one seed to another."""
MEASURED = ("vision.*", "embedding.*", "logits.*", "greedy.*", *CLEAN)
"""Checks whose evidence is needed here; what is traced is traced anew, on every image."""


@dataclass(frozen=True)
class Measured:
    """metric -> case -> value, of one clean file."""

    values: dict[str, dict[str, float]]


def measure(
    evidence: Evidence, opened: Opened, definition: Definition, on_progress: OnProgress = no_progress
) -> Measured:
    """All calibrated metrics of a run; what is traced, on every golden image. Raises `GoldenError` if the program did not answer everything."""
    values: dict[str, dict[str, float]] = {}
    center = channel_center(evidence)
    for case in evidence.cases:
        tokens = _clean(compare_about(case, center), evidence)
        logits = _clean(compare(actual=case.logits, expected=case.expected.logits), evidence)
        for one in (*vision_measures(tokens), *case_measures(logits)):
            values.setdefault(one.metric, {})[case.sample.golden.name] = one.value
    answers = _clean(all_logits(evidence), evidence)
    images = _clean(compare_all((case.vision, case.expected.vision) for case in evidence.cases), evidence)
    vision, channels = worst_channel(images), evidence.channels
    assert isinstance(channels, ChannelError)
    for one in distribution_measures(answers):
        values[one.metric] = {"program": one.value}
    values["logits.channel_gain_change"] = {"program": channels.gain_change}
    values["vision.channel_gain_change"] = {"program": vision.gain_change}
    values["vision.channel_offset_change"] = {"program": vision.offset_change}
    values[VISION], values[PROFILE] = _layers(evidence, opened, definition, on_progress)
    values[NOISE] = {"program": margin_noise(answers)}
    odd = [
        f"{metric} of {case}" for metric, of in values.items() for case, value in of.items() if not np.isfinite(value)
    ]
    if odd:
        raise GoldenError("a metric is not a number", got=odd[0], fix="calibrate with a clean export")
    return Measured(values)


def _clean(made: Difference | Mismatch, evidence: Evidence) -> Difference:
    if isinstance(made, Mismatch):
        raise GoldenError(
            "the program did not answer every golden image",
            got=evidence.runtime.message or made.reason,
            fix="calibrate with a clean export",
        )
    return made


def _layers(
    evidence: Evidence, opened: Opened, definition: Definition, on_progress: OnProgress
) -> tuple[dict[str, float], dict[str, float]]:
    """SQNR of the vision tower's layers and of the profile, by block and image; one image is traced at a time."""
    audit = audit_weights(opened.artifact, opened.family, opened.recipe, compare=False)
    vision: list[BlockError] = []
    depth: list[BlockError] = []
    for number, case in enumerate(evidence.cases):
        on_progress("images", number, len(evidence.cases))
        with tempfile.TemporaryDirectory(prefix="verifier-trace-") as folder:
            large, patches = opened.family.large, evidence.patches
            traced = run_traced(
                opened.artifact, opened.caller, [case.sample], opened.runner, Path(folder), patches=patches, large=large
            )
            found = against_fp32(opened.artifact, audit, definition, traced)
        vision += found[0]
        depth += found[1]
    return worst_by_block(vision), worst_by_block(depth)


def _once() -> AnswerSamples:
    """The fp32 answers are the same for all files of one checkpoint: they are computed for the first one."""
    known: list[list[Answered]] = []

    def answer(definition: Definition, samples: Sequence[Sample]) -> list[Answered]:
        if not known:
            known.append(answer_samples(definition, samples))
        return known[0]

    return answer


def _measured(opened: Opened, progress: Progress, answer: AnswerSamples) -> Measured:
    evidence, rung = gather(opened, progress, answer=answer)
    require_clean(second_look(evidence, rung, opened), opened.having)
    with progress.stage("layers on every image"):
        return measure(evidence, opened, rung.definition, progress.counted)


def _deviations(metric: str, first: Measured, others: Sequence[Measured]) -> list[float]:
    return [other.values[metric][case] - value for other in others for case, value in first.values[metric].items()]


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0


def spread_interval(deviations: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the rms of deviations (Efron 1987, percentile), resampling images, prompts and files.

    Too few deviations for that give the rms itself, twice.
    """
    values, rms = np.asarray(deviations), _rms(deviations)
    if not BOOTSTRAP_LEAST.admits(len(values)) or rms == 0.0:
        return rms, rms
    found = stats.bootstrap(
        (values,),
        lambda sample, axis: np.sqrt(np.mean(np.square(sample), axis=axis)),
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def bands(first: Measured, variants: Sequence[Measured], repeats: Sequence[Measured] = ()) -> JsonObject:
    """The band of every metric as JSON: direction, measured, margin, and the spread that it comes from.

    `repeats` are runs of the first file itself: what they differ by is added to the margin, not averaged into it.
    """
    made = {}
    for metric, cases in first.values.items():
        deviations = _deviations(metric, first, variants)
        repeat_rms = _rms(_deviations(metric, first, repeats))
        low, high = spread_interval(deviations)
        factor = UPPER_SPREADS if BOOTSTRAP_LEAST.admits(len(deviations)) else SPREADS
        floor = FLOOR * abs(float(np.median(list(cases.values()))))
        direction = 1 if SCALES[metric].at == "least" else -1
        margin = max(factor * float(np.hypot(high, repeat_rms)), floor)
        worst = {
            case: max(direction * (value - other.values[metric][case]) for other in variants)
            for case, value in cases.items()
        }
        made[metric] = {
            "direction": direction,
            "margin": margin,
            "wider": {case: float(f"{WORST * w:.6g}") for case, w in worst.items() if WORST * w > margin},
            "spread_rms": _rms(deviations),
            "repeat_rms": repeat_rms,
            "spread_ci95": [low, high],
            "deviations": len(deviations),
            "measured": {case: float(f"{value:.6g}") for case, value in cases.items()},
        }
    return made


def write_tolerances(
    opened: Opened, first: Measured, variants: Sequence[Measured], repeats: Sequence[Measured], reason: str
) -> Path:
    """Add or replace the recipe's bands in `tolerances.json` beside the checkpoint."""
    path = golden_folder(opened.checkpoint) / "tolerances.json"
    text: JsonObject = {"schema": TOLERANCE_SCHEMA, "checkpoint_sha256": opened.checkpoint.sha256, "recipes": {}}
    old = stored(path, TOLERANCE_SCHEMA)
    if old.get("checkpoint_sha256") == opened.checkpoint.sha256:
        text = old
    text["recipes"][opened.recipe.name] = {
        "provenance": {
            "reason": reason,
            "pte_sha256": opened.artifact.sha256,
            "variants": len(variants),
            "repeats": 1 + len(repeats),
            "samples": len(opened.golden.images),
            "rule": (
                f"margin = max({UPPER_SPREADS:g} x upper 95 % bootstrap bound of the rms deviation over files and images, "
                f"{SPREADS:g} x rms where there are fewer than {BOOTSTRAP_LEAST.value:g} deviations, {FLOOR:g} x median); "
                f"{WORST:g} x the worst deviation of a case where that is more"
            ),
            "versions": package_versions(),
            "cpu": cpu_kind(),
        },
        "census": census_of(opened.artifact),
        "bands": bands(first, variants, repeats),
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(text, indent=1, allow_nan=False) + "\n")
    return path


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 written, 2 not."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.calibrate", description="Record what a clean export measures."
    )
    parser.add_argument("pte", type=Path, metavar="PTE")
    parser.add_argument(
        "--variant", type=Path, action="append", default=[], metavar="PTE", help="an equally clean export; at least two"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of PTE itself (default 1)")
    parser.add_argument("--model", help="checkpoint folder (default: the embedded llava_tiny)")
    parser.add_argument("--reason", default="first calibration", help="why; it is written down")
    options = parser.parse_args(arguments)
    if not 1 <= options.repeats <= 100:
        raise UsageError("the number of repeats is not usable", got=options.repeats, expected="1 to 100")
    if len(options.variant) < 2:
        raise UsageError(
            "too few variants to know a spread",
            got=len(options.variant),
            expected="at least 2 (--variant PTE)",
            fix=EXPORT_AGAIN,
        )
    progress = Progress(lines=True)
    files = [options.pte] * options.repeats + options.variant
    requests = [Request(path, options.model, checks=MEASURED) for path in files]
    opened = [open_request(request) for request in requests]
    names = {one.recipe.name for one in opened}
    if len(names) > 1:
        raise UsageError(
            "the variants are of another recipe", got=", ".join(sorted(names)), expected=opened[0].recipe.name
        )
    require_variants([one.artifact for one in (opened[0], *opened[options.repeats :])])
    with hushed() as stream:
        progress.stream = stream
        answer, measured = _once(), []
        for number, one in enumerate(opened, 1):
            progress.label = f"{number} of {len(opened)}, {one.artifact.path.name}: "
            measured.append(_measured(one, progress, answer))
            gc.collect()  # a model's modules refer to each other; 4 GiB of the last file would stay
    repeats, variants = measured[1 : options.repeats], measured[options.repeats :]
    path = write_tolerances(opened[0], measured[0], variants, repeats, options.reason)
    print(f"{path}: {opened[0].recipe.name}, {len(measured[0].values)} bands from {len(measured)} exports")
    return 0
