"""`logits.*`: the decoder's output, teacher-forced over the golden answers, against fp32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.checks.bands import Conversations, Measure, conversations, decided, judge
from verifier.checks.check import ALL_IMAGES, Finding, check, failed, need, one_case, per_image, unverified
from verifier.core.compare import Difference, Mismatch, agreement_interval, compare, compare_all
from verifier.core.prices import judged_by
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER
from verifier.measures.channels import ChannelError
from verifier.measures.evidence import Evidence, Part

CASE_METRICS = ("logits.sqnr_db", "logits.kl_mean")
TOP1, DECIDED_TOP1 = "logits.top1_agreement", "logits.top1_decided"
DISTRIBUTION = ("logits.kl_p90", "logits.kl_p99", TOP1)


def case_measures(made: Difference) -> list[Measure]:
    """SQNR and KL over one answer."""
    return [
        Measure("logits.sqnr_db", made.sqnr_db, "dB"),
        Measure("logits.kl_mean", float(made.kl_nats.mean()), "nats"),
    ]


@check(
    "logits.teacher_forced",
    step="quantization",
    needs=conversations,
    cases=per_image,
    limit=(*judged_by(*CASE_METRICS), "price.groups"),
    explained_by="layers.ranges",
    overlap="what is wrong with logits is wrong in a layer or constant before; this one is the sum of all",
)
def teacher_forced(given: Conversations, name: str) -> Finding:
    """SQNR and KL divergence of the logits against fp32 stay within their bands for every golden answer, or within the budgets of quantization."""
    case, evidence = given.cases[name], given.evidence
    first = case.sample.prompt.length(evidence.patches) - 1
    if case.logits is None:
        said = f"{DECODER} did not return: {evidence.runtime.message}"
        return failed(said, where=Where(method=DECODER), accuses="calls")
    made = compare(actual=case.logits, expected=case.expected.logits)
    if isinstance(made, Mismatch):
        position = first + (made.index[0] if made.index else 0)
        return failed(f"logits: {made.reason}", where=Where(DECODER, index=(position,)))
    worst = int(made.kl_nats.argmax())
    position = first + worst
    return judge(
        evidence,
        name,
        case_measures(made),
        what="logits against fp32",
        where=Where(method=DECODER, index=(position,)),
        hint=f"The worst position is {position}, answer token {worst}. If vision.* and embedding.* pass, check decoder weights, positions and cache.",
    )


def all_logits(evidence: Evidence) -> Difference | Mismatch:
    """The logits of all golden answers together [N, V]."""
    return compare_all((case.logits, case.expected.logits) for case in evidence.cases)


def distribution_measures(made: Difference) -> list[Measure]:
    """KL percentiles and top-1 agreement over all positions of all answers; of the latter a budget asks only where fp32 is decided."""
    kl, sure = made.kl_nats, decided(made.expected)
    same = (made.actual.argmax(-1) == made.expected.argmax(-1))[sure]
    priced = (DECIDED_TOP1, float(same.mean())) if len(same) else None
    return [
        Measure("logits.kl_p90", float(np.percentile(kl, 90)), "nats"),
        Measure("logits.kl_p99", float(np.percentile(kl, 99)), "nats"),
        Measure(TOP1, made.same_winners / len(kl), "", priced=priced, has_price=bool(len(same))),
    ]


@check(
    "logits.distribution",
    step="quantization",
    needs=conversations,
    cases=one_case,
    limit=(*judged_by(*DISTRIBUTION), "price.groups", "price.decided"),
    explained_by="layers.ranges",
    having={ALL_IMAGES},
    overlap="as for each answer, over all answers",
)
def distribution(given: Conversations, case: str) -> Finding:
    """Over all answers, the percentiles of KL divergence and the top-1 agreement (with its 95 % Wilson interval) stay within their bands."""
    made = all_logits(given.evidence)
    if isinstance(made, Mismatch):
        return unverified(f"not every golden answer has logits ({made.reason}); see logits.teacher_forced")
    hits, rows = made.same_winners, len(made.actual)
    low, high = agreement_interval(hits, rows)
    return judge(
        given.evidence,
        case,
        distribution_measures(made),
        what=f"distribution over {rows} positions (top-1 agrees on {hits}, 95 % interval {low:.3f}..{high:.3f})",
        where=Where(method=DECODER),
        hint="Check decoder weights and the recipe's group size and quantizer.",
    )


@dataclass(frozen=True)
class Recovered:
    """The worst channel of the final hidden state, and all other evidence."""

    evidence: Evidence
    error: ChannelError


@need(Part.CHANNELS, golden=True, computed=True)
def recovered(evidence: Evidence) -> Recovered | Missing:
    """Channels of the final hidden state, recovered from the logits."""
    error = evidence.channels
    return error if isinstance(error, Missing) else Recovered(evidence, error)


@check(
    "logits.channels",
    step="quantization",
    needs=recovered,
    cases=one_case,
    limit=(*judged_by("logits.channel_gain_change"), "logits.channels.pivot"),
    explained_by="layers.ranges",
    having={ALL_IMAGES},
    overlap="a wrong norm weight is found by its bytes; this one sees it in the logits alone",
)
def channels(given: Recovered, case: str) -> Finding:
    """Every channel behind the final norm has the gain that it has in fp32. A single wrong norm weight shows here, however large the 4-bit noise is."""
    error = given.error
    return judge(
        given.evidence,
        case,
        [Measure("logits.channel_gain_change", error.gain_change, "")],
        what="channels of the final hidden state",
        where=Where(method=DECODER, module="norm", index=(error.channel,)),
        hint=f"Channel {error.channel} has gain {error.gain:.3f}. Check that element of the final norm's weight, and column {error.channel} of the output head.",
    )


CHECKS = (channels, teacher_forced, distribution)
