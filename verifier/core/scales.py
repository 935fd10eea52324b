"""How the measures of results are read: the unit of each, and on which side of its bound it must be."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.core.limits import At, Limit, Unit


@dataclass(frozen=True)
class Scale:
    """How a measure is read, by its name in a result: its unit, and on which side of its bound it must be."""

    unit: Unit
    at: At

    def limit(self, name: str, value: float) -> Limit:
        """A bound of this measure that was recorded for one checkpoint."""
        return Limit(name, value, self.unit, self.at, "measured", "recorded for this checkpoint and recipe")


_DB, _SHARE = Scale("dB", "least"), Scale("share", "most")
SCALES: dict[str, Scale] = {
    "sqnr_db": _DB,
    "vision.sqnr_db": _DB,
    "vision.token_sqnr_p10_db": _DB,
    "vision.channel_gain_change": Scale("ratio", "most"),
    "vision.channel_offset_change": Scale("sd", "most"),
    "layers.vision_db": _DB,
    "layers.profile_db": _DB,
    "embedding.sqnr_db": _DB,
    "logits.sqnr_db": _DB,
    "logits.kl_mean": Scale("nats", "most"),
    "logits.kl_p90": Scale("nats", "most"),
    "logits.kl_p99": Scale("nats", "most"),
    "logits.top1_agreement": Scale("share", "least"),
    "logits.top1_decided": Scale("share", "least"),
    "logits.channel_gain_change": Scale("ratio", "most"),
    "greedy.margin_noise": Scale("logits", "most"),
    "margin": Scale("logits", "most"),
    "apart": Scale("ratio", "least"),
    "share_of_limit": _SHARE,
    "clipped": _SHARE,
    "worst_steps": Scale("steps", "most"),
    "file_bytes": Scale("bytes", "most"),
    "planned_bytes": Scale("bytes", "most"),
    "structure.memory planned_bytes": Scale("bytes", "least"),
    "peak_rss_bytes": Scale("bytes", "most"),
    "prefill_loops": Scale("loops", "most"),
    "decode_loops": Scale("loops", "most"),
}
"""Measures that have a tolerance, by name; where a name means two things, with the check in front. What is not here is met or not, such as a count
or a length."""


def scale_of(check: str, measure: str) -> Scale | None:
    """How a check's measure is read; None for one that is met or not."""
    return SCALES.get(f"{check} {measure}") or SCALES.get(measure)
