"""Budgets of quantization: what it may cost against fp32, metric by metric, unless a user states it.

Equality with the recipe is judged elsewhere, layer by layer; what the recipe costs is a price. The default budgets are rows `price.*` of the
table of limits.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping

from verifier.core.errors import UsageError
from verifier.core.limits import LIMITS, Limit, limit
from verifier.core.types import EMBEDDING_GROUP, Recipe

PRICES: dict[str, str] = {
    "vision": "vision.sqnr_db",
    "vision_tokens": "vision.token_sqnr_p10_db",
    "vision_gain": "vision.channel_gain_change",
    "vision_offset": "vision.channel_offset_change",
    "layer": "layers.vision_db",
    "profile": "layers.profile_db",
    "embedding": "embedding.sqnr_db",
    "sqnr": "logits.sqnr_db",
    "kl": "logits.kl_mean",
    "kl_p90": "logits.kl_p90",
    "kl_p99": "logits.kl_p99",
    "top1": "logits.top1_agreement",
    "gain": "logits.channel_gain_change",
    "text": "use.text_kept",
    "kept": "pixels.kept",
}
"""Metrics that have a budget, by the name that `--budget` gives them."""
_BY_METRIC = {metric: name for name, metric in PRICES.items()}
_GROUPED = ("logits.sqnr_db", "logits.kl_mean", "logits.kl_p90", "logits.kl_p99")
BITS_DB = 20 * math.log10(2)
"""What one bit of a weight is worth."""
WIDEST_ROW = 4096
"""Columns of a table whose rows have one scale each: those of a 7B model, as the noise grows with the logarithm alone."""


def add_budget_option(parser: ArgumentParser, *, in_place_of: str) -> None:
    """`--budget`, which `parse_prices` reads."""
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help=f"what quantization may cost, in place of {in_place_of}: {', '.join(PRICES)} (docs/tolerances.md)",
    )


def parse_prices(words: Iterable[str]) -> dict[str, float]:
    """`kl=0.1,top1=0.95` as values by metric; several words, and the metrics' own names, are taken too. Raises `UsageError`."""
    stated: dict[str, float] = {}
    for entry in (part.strip() for word in words for part in word.split(",")):
        if not entry:
            continue
        name, _, text = entry.partition("=")
        metric = PRICES.get(name, name)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if metric in stated:
            raise UsageError("a budget is given twice", got=entry, expected=f"one value of {name}")
        stated |= checked_prices({metric: value}, got=entry)
    return stated


def checked_prices(stated: Mapping[str, float], *, got: str | None = None) -> dict[str, float]:
    """Budgets by metric, as they were given. Raises `UsageError` for a metric that has none, and for a value that it cannot have."""
    for metric, value in stated.items():
        if metric not in _BY_METRIC:
            raise UsageError(
                "no such budget",
                got=got or metric,
                expected=f"NAME=VALUE, NAME one of {', '.join(PRICES)}",
                fix="give for example --budget kl=0.1,top1=0.95",
            )
        row = limit(f"price.{metric}")
        share = row.unit == "share"
        if not math.isfinite(value) or (row.unit != "dB" and value < 0) or (share and value > 1):
            raise UsageError(
                "the budget is not usable",
                got=got or f"{metric}={value}",
                expected="a share from 0 to 1"
                if share
                else f"a number of {row.unit}" + ("" if row.unit == "dB" else ", at least 0"),
            )
    return dict(stated)


def judged_by(*metrics: str) -> tuple[str, ...]:
    """The limits that decide about metrics with a price: their bands, and the rows of their budgets."""
    rows = tuple(name for metric in metrics for name in (f"price.{metric}", f"price.{metric}.fp32") if name in LIMITS)
    return (*metrics, *rows)


def option(metric: str, value: float) -> str:
    """How a budget is given on the command line."""
    return f"--budget {_BY_METRIC[metric]}={value:.4g}"


def default_price(metric: str, recipe: Recipe, *, tower: bool) -> Limit:
    """The budget of a metric for a recipe if nobody states one; `tower` for what the encoder of images alone decides."""
    row = limit(f"price.{metric}")
    if tower and recipe.vision == "fp32":
        return limit(f"price.{metric}.fp32")
    if metric == "embedding.sqnr_db":
        power = math.log(2 * (recipe.embedding_group_size or WIDEST_ROW)) / math.log(2 * EMBEDDING_GROUP)
        return row.of(row.value - 10 * math.log10(power) - BITS_DB * (8 - min(recipe.embedding_bits, 8)))
    if metric in _GROUPED:
        power = group_power(recipe)
        return row.of(row.value - 10 * math.log10(power) if row.unit == "dB" else row.value * power)
    return row


def stated_price(metric: str, value: float) -> Limit:
    """The budget that a user states."""
    row = limit(f"price.{metric}")
    return Limit(row.id, value, row.unit, row.at, "policy", "stated by the user")


def group_power(recipe: Recipe) -> float:
    """Power of the weights' rounding errors in units of that of groups of 128: half is the output head's, half that of all linears before it."""
    usual = 2 * limit("price.groups").value
    sizes = (recipe.group_size, recipe.head_group_size or recipe.group_size)
    return sum(math.log(2 * size) for size in sizes) / (2 * math.log(usual))
