"""Budgets of quantization: how they are stated, what they are by default, and how they judge beside bands."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support import verify
from verifier.checks.bands import Measure, decided, judge
from verifier.checks.check import Finding
from verifier.core.errors import UsageError
from verifier.core.limits import LIMITS
from verifier.core.prices import PRICES, default_price, parse_prices
from verifier.core.types import Missing, Recipe, Where
from verifier.golden.bands import Band, Tolerances
from verifier.report.headline import headline

NO_BANDS = Missing("this recipe was never calibrated", "verifier")
KL = "logits.kl_mean"


def test_stated_budgets_are_read_by_either_name() -> None:
    """Several in a word, several words, short names and the metrics' own."""
    assert parse_prices(["kl=0.1,top1=0.95", "vision=12", ""]) == {
        KL: 0.1,
        "logits.top1_agreement": 0.95,
        "vision.sqnr_db": 12.0,
    }
    assert parse_prices([f"{KL}=0.3"]) == {KL: 0.3}


@pytest.mark.parametrize(
    "word", ["speed=1", "kl", "kl=", "kl=x", "kl=nan", "kl=inf", "kl=-0.1", "top1=1.5", "kl=1,kl=2", "=3"]
)
def test_unusable_budgets_are_refused(word: str) -> None:
    """A name that no metric has, and a value that it cannot have; with what would do."""
    with pytest.raises(UsageError) as refused:
        parse_prices([word])
    assert refused.value.got is not None
    assert refused.value.expected is not None


def test_every_price_is_a_policy_with_its_direction() -> None:
    """In dB and shares at least, all others at most, as the bands of the same metrics."""
    rows = [LIMITS[f"price.{metric}"] for metric in PRICES.values()]
    assert {row.kind for row in rows} == {"policy"}
    assert all((row.at == "least") == (row.unit in ("dB", "share")) for row in rows)


def test_budgets_follow_what_the_file_states() -> None:
    """Smaller groups, of the head alone, too, an fp32 tower, and more bits of the embedding have to cost less."""

    def price(metric: str, *, tower: bool = False, **fields: Any) -> float:
        return default_price(metric, Recipe(**fields), tower=tower).value

    kls = [price(KL), price(KL, head_group_size=32), price(KL, group_size=32)]
    assert kls == sorted(kls, reverse=True)
    assert kls[0] == LIMITS[f"price.{KL}"].value
    assert price("logits.sqnr_db") < price("logits.sqnr_db", group_size=32)
    assert price("vision.sqnr_db", tower=True) < price("vision.sqnr_db", tower=True, vision="fp32")
    assert price("layers.profile_db", vision="fp32") == price("layers.profile_db")
    lost = price("embedding.sqnr_db") - price("embedding.sqnr_db", embedding_bits=4)
    assert lost == pytest.approx(24.08, abs=0.01)


def test_command_refuses_a_budget_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, with the names that there are."""
    assert verify("no.pte", "--budget", "speed=1") == 2
    said = capsys.readouterr().err
    assert "no such budget" in said and "top1" in said


def test_price_is_the_recipes_only_if_the_file_is_what_the_recipe_made() -> None:
    """Where what a layer should compute could not be compared, nobody knows what the distance from fp32 comes from."""
    over = {"id": "vision.embedding", "step": "quantization", "verdict": "fail", "accuses": "price"}
    layer = {"id": "layers.vision", "step": "lowering", "verdict": "pass"}
    assert "The file is what the recipe made" in headline([layer, over])
    assert "could not be compared" in headline([layer | {"verdict": "error"}, over])


def _judged(value: float, *, tolerances: Any = NO_BANDS, prices: dict[str, float] | None = None, **of: Any) -> Finding:
    evidence: Any = SimpleNamespace(recipe=Recipe(), tolerances=tolerances, prices=prices or {})
    return judge(evidence, "square", [Measure(KL, value, "nats", **of)], what="logits", where=Where(), hint="Look.")


def test_without_bands_the_budget_judges() -> None:
    """Inside and outside; what is no number is never inside. The message says which budget, and how to accept the price."""
    assert _judged(0.19).verdict == "pass"
    assert "default budget" in _judged(0.19).message
    over = _judged(0.21)
    assert over.verdict == "fail"
    assert over.fields["accuses"] == "price"
    assert "--budget kl=0.21" in over.message
    assert {_judged(value).verdict for value in (math.nan, math.inf)} == {"fail"}


def test_a_stated_budget_takes_the_place_of_the_default() -> None:
    """Tighter or wider."""
    assert _judged(0.19, prices={KL: 0.1}).verdict == "fail"
    assert _judged(0.21, prices={KL: 0.3}).verdict == "pass"
    assert "stated" in _judged(0.19, prices={KL: 0.1}).message


def test_a_band_is_the_tighter_limit() -> None:
    """It judges in place of the default budget; a stated budget holds beside it. A case without band has the budget."""
    band = Band(KL, -1, {"square": 0.01}, 0.005)
    known = Tolerances("recipe", {KL: band}, {}, {})
    assert _judged(0.012, tolerances=known).message == "logits is within its band"
    broken = _judged(0.1, tolerances=known)
    assert (broken.verdict, broken.fields["accuses"]) == ("fail", "")
    assert _judged(0.012, tolerances=known, prices={KL: 0.011}).verdict == "fail"
    elsewhere = Tolerances("recipe", {KL: Band(KL, -1, {"wide": 0.01}, 0.005)}, {}, {})
    assert _judged(0.1, tolerances=elsewhere).verdict == "pass"


def test_what_is_priced_may_be_another_value() -> None:
    """The band is asked of the value, the budget of what is priced; what has neither was not judged."""
    assert _judged(0.5, priced=("kl_decided", 0.1)).verdict == "pass"
    over = _judged(0.1, priced=("kl_decided", 0.5))
    assert (over.verdict, over.fields["measured"]) == ("fail", {KL: 0.1, "kl_decided": 0.5})
    assert "kl_decided 0.5" in over.message
    assert _judged(0.5, has_price=False).verdict == "error"


def test_decided_is_more_likely_than_all_others_together() -> None:
    """Of two that are alike neither is; large logits do not overflow."""
    logits = np.array([[0.0, 0.0, -9.0], [3.0, 0.0, 0.0], [900.0, 0.0, 0.0], [0.1, 0.0, 0.0]], dtype=np.float32)
    assert decided(logits).tolist() == [False, True, True, False]
