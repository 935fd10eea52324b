"""Bands from spreads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import EMBEDDED_PTE
from verifier.artifact.program import open_artifact
from verifier.backends.quantization import PerTensor
from verifier.commands import variants
from verifier.commands.calibrate import Measured, bands, main, spread_interval
from verifier.commands.variants import int8_ranges, require_variants
from verifier.core.errors import UsageError
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import change_bytes, find_constants
from verifier.golden.bands import Band


def test_interval_covers_the_true_spread() -> None:
    """95 % intervals of 60 normal deviations hold the true rms of 1 nearly always."""
    rng = np.random.default_rng(1)
    intervals = [spread_interval(rng.standard_normal(60).tolist()) for _ in range(40)]
    assert sum(low <= 1.0 <= high for low, high in intervals) >= 34
    assert all(low < high for low, high in intervals)


def test_margin_is_three_upper_spreads() -> None:
    """Many deviations: the upper end of the interval counts. Larger is better for dB, so the limit lies below."""
    cases = {f"image {i}": 30.0 for i in range(20)}
    rng = np.random.default_rng(2)
    variants = [
        Measured({"logits.sqnr_db": {c: v + rng.normal(scale=0.8) for c, v in cases.items()}}) for _ in range(2)
    ]
    band = bands(Measured({"logits.sqnr_db": cases}), variants)["logits.sqnr_db"]
    assert band["margin"] == pytest.approx(max(3 * band["spread_ci95"][1], 0.05 * 30))
    assert (band["direction"], band["deviations"]) == (1, 40)


def test_few_deviations_keep_four_spreads() -> None:
    """Two files and one number each: nothing to bootstrap."""
    made = bands(
        Measured({"logits.kl_p90": {"program": 0.1}}),
        [Measured({"logits.kl_p90": {"program": 0.13}}), Measured({"logits.kl_p90": {"program": 0.1}})],
    )
    assert made["logits.kl_p90"]["margin"] == pytest.approx(4 * np.sqrt(0.03**2 / 2))


def test_case_that_moves_more_gets_more() -> None:
    """One image of twenty loses 6 dB in one variant: its own margin is 1.5 times that, all others keep theirs; what is better than
    before widens nothing."""
    cases = {f"image {i}": 25.0 for i in range(20)}
    rng = np.random.default_rng(3)
    variants = [
        Measured({"logits.sqnr_db": {c: v + rng.normal(scale=0.3) for c, v in cases.items()}}) for _ in range(2)
    ]
    variants[0].values["logits.sqnr_db"]["image 7"] = 19.0
    variants[1].values["logits.sqnr_db"]["image 8"] = 31.0
    made = bands(Measured({"logits.sqnr_db": cases}), variants)["logits.sqnr_db"]
    assert made["wider"] == {"image 7": pytest.approx(9.0)}
    band = Band("logits.sqnr_db", made["direction"], made["measured"], made["margin"], made["wider"])
    assert band.allowed("image 7") == pytest.approx(16.0)
    assert band.allowed("image 6") == pytest.approx(25.0 - made["margin"])
    larger_is_worse = bands(
        Measured({"logits.kl_p90": {"a": 0.1}}), [Measured({"logits.kl_p90": {"a": v}}) for v in (0.1, 0.5)]
    )
    assert larger_is_worse["logits.kl_p90"]["wider"] == {}  # four spreads of two numbers are more already


def test_repeats_out_of_range_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and why."""
    assert main(["a.pte", "--repeats", "0", "--variant", "b.pte", "--variant", "c.pte"]) == 2
    assert "1 to 100" in capsys.readouterr().err


def _copies(folder: Path, *names: str) -> list[Path]:
    return [Path(shutil.copy(EMBEDDED_PTE, folder / name)) for name in names]


def _change_weight(pte: Path) -> None:
    constant = find_constants(pte, open_checkpoint())["text_decoder.norm.weight"].value.constant
    assert constant is not None
    change_bytes(pte, constant, lambda raw: raw ^ 1)


def test_copies_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any work: which two, and why. The file itself is no variant of itself either."""
    one, two = _copies(tmp_path, "one.pte", "two.pte")
    for first, second in ((one, two), (EMBEDDED_PTE, one)):
        assert main([str(EMBEDDED_PTE), "--variant", str(first), "--variant", str(second)]) == 2
        said = capsys.readouterr().err
        assert "hold the same bytes" in said
        assert f"{EMBEDDED_PTE} and {first}" in said
        assert "other calibration images" in said


def test_near_copies_are_refused_by_name(tmp_path: Path) -> None:
    """One changed weight makes no variant: what calibration images decide is the same."""
    one, two = _copies(tmp_path, "one.pte", "two.pte")
    _change_weight(one)
    with pytest.raises(UsageError, match="all but the same") as refused:
        require_variants([open_artifact(one), open_artifact(two)])
    assert "one.pte" in str(refused.value) and "two.pte" in str(refused.value)


@pytest.mark.parametrize(("moved", "refused"), [(0, True), (1, True), (5, True), (30, False), (100, False)])
def test_variants_differ_in_their_ranges(monkeypatch: pytest.MonkeyPatch, moved: int, refused: bool) -> None:
    """A tenth of the int8 ranges and more; what another machine rounds otherwise does not count."""
    first = {("vision_encoder", 0, id): PerTensor(0.1, 3) for id in range(100)}
    rounded = {place: PerTensor(0.1 * (1 + 1e-6), 3) for place in first}
    second = rounded | {place: PerTensor(0.11, 3) for place in list(first)[:moved]}
    monkeypatch.setattr(variants, "int8_ranges", lambda file: first if file.sha256 == "a" else second)
    files: Any = [_File("a"), _File("b")]
    if not refused:
        require_variants(files)
        return
    with pytest.raises(UsageError, match="all but the same"):
        require_variants(files)


class _File:
    """Stands for a program."""

    def __init__(self, name: str) -> None:
        self.sha256, self.path = name, Path(f"{name}.pte")


def test_file_without_ranges_needs_no_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """An fp32 tower: no image went into it. What to do instead is said."""
    monkeypatch.setattr(variants, "int8_ranges", lambda _file: {})
    files: Any = [_File("a"), _File("b")]
    with pytest.raises(UsageError, match="has no variants") as refused:
        require_variants(files)
    assert "verifier.test_pte" in str(refused.value)


def test_embedded_program_has_ranges() -> None:
    """Those of its int8 tower."""
    found = int8_ranges(open_artifact(EMBEDDED_PTE))
    assert len(found) > 20
    assert {method for method, _, _ in found} == {"vision_encoder"}


def test_too_few_variants_say_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign exporter may have none to give: bands are not needed then."""
    assert main([str(EMBEDDED_PTE)]) == 2
    said = capsys.readouterr().err
    assert "at least 2" in said and "no bands are needed" in said
