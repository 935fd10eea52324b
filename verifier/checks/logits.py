"""`logits.*`: the decoder's output, teacher-forced over the golden answers, against fp32."""

from __future__ import annotations

import numpy as np

from verifier.checks.channels import recover_hidden, worst_channel
from verifier.checks.common import Check, Measure, judge, one_case, per_image
from verifier.evidence import Case, Evidence
from verifier.metrics import Array, agreement_interval, comparable, kl_divergence, sqnr_db
from verifier.types import CheckResult, Where


def case_measures(case: Case) -> list[Measure]:
    """SQNR and KL over one answer."""
    assert case.logits is not None
    kl = kl_divergence(actual=case.logits, expected=case.expected.logits)
    return [
        Measure("logits.sqnr_db", sqnr_db(actual=case.logits, expected=case.expected.logits), "dB"),
        Measure("logits.kl_mean", float(kl.mean()), "nats"),
    ]


def _missing(check: Check, evidence: Evidence, case: Case) -> CheckResult | None:
    name = case.sample.golden.name
    if case.logits is None:
        return check.failed(
            name,
            f"text_decoder did not return: {evidence.runtime.conversations.message}",
            where=Where(method="text_decoder"),
        )
    mismatch = comparable(actual=case.logits, expected=case.expected.logits)
    if mismatch:
        position = case.sample.prompt.length(evidence.patches) + (mismatch.index[0] if mismatch.index else 0) - 1
        return check.failed(name, f"logits: {mismatch.reason}", where=Where("text_decoder", index=(position,)))
    return None


def teacher_forced(check: Check, evidence: Evidence) -> list[CheckResult]:
    """SQNR and KL divergence of every golden answer stay in their bands."""
    results = []
    for case in evidence.cases:
        missing = _missing(check, evidence, case)
        if missing:
            results.append(missing)
            continue
        assert case.logits is not None
        worst = int(kl_divergence(actual=case.logits, expected=case.expected.logits).argmax())
        position = case.sample.prompt.length(evidence.patches) + worst - 1
        results.append(
            judge(
                check,
                evidence,
                case.sample.golden.name,
                case_measures(case),
                what="logits against fp32",
                where=Where(method="text_decoder", index=(position,)),
                hint=f"The worst position is {position}, answer token {worst}. If vision.* and embedding.* pass, check decoder weights, positions and cache.",
            )
        )
    return results


def _all_logits(evidence: Evidence) -> tuple[Array, Array] | None:
    cases = [
        c
        for c in evidence.cases
        if c.logits is not None and comparable(actual=c.logits, expected=c.expected.logits) is None
    ]
    if len(cases) < len(evidence.cases):
        return None
    return np.concatenate([np.asarray(c.logits) for c in cases]), np.concatenate([c.expected.logits for c in cases])


def distribution_measures(actual: Array, expected: Array) -> list[Measure]:
    """KL percentiles and top-1 agreement over all positions of all answers."""
    kl = kl_divergence(actual=actual, expected=expected)
    hits = int((actual.argmax(-1) == expected.argmax(-1)).sum())
    return [
        Measure("logits.kl_p90", float(np.percentile(kl, 90)), "nats"),
        Measure("logits.kl_p99", float(np.percentile(kl, 99)), "nats"),
        Measure("logits.top1_agreement", hits / len(kl), ""),
    ]


def distribution(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Over all answers: percentiles of KL, and top-1 agreement with its 95 % Wilson interval."""
    both = _all_logits(evidence)
    if both is None:
        return [check.error("program", "not every golden answer has logits; see logits.teacher_forced")]
    actual, expected = both
    hits = int((actual.argmax(-1) == expected.argmax(-1)).sum())
    low, high = agreement_interval(hits, len(actual))
    result = judge(
        check,
        evidence,
        "program",
        distribution_measures(actual, expected),
        what=f"distribution over {len(actual)} positions (top-1 agrees on {hits}, 95 % interval {low:.3f}..{high:.3f})",
        where=Where(method="text_decoder"),
        hint="Check decoder weights and the recipe's group size and quantizer.",
    )
    return [result]


def channel_measures(evidence: Evidence) -> tuple[list[Measure], int, float] | None:
    """Gain of every channel of the final hidden state, recovered from the logits; worst channel and its gain."""
    both = _all_logits(evidence)
    if both is None:
        return None
    head = evidence.definition.decoder.output.weight.numpy()
    hidden = np.concatenate([case.expected.hidden for case in evidence.cases])
    worst = worst_channel(actual=recover_hidden(both[0], head), expected=hidden)
    return (
        [Measure("logits.channel_gain_change", worst.gain_change, "")],
        worst.gain_channel,
        float(worst.fit.gain[worst.gain_channel]),
    )


def channels(check: Check, evidence: Evidence) -> list[CheckResult]:
    """No channel behind the final norm has another gain than in fp32: one wrong norm weight shows, whatever the 4-bit noise."""
    fitted = channel_measures(evidence)
    if fitted is None:
        return [check.error("program", "not every golden answer has logits; see logits.teacher_forced")]
    measures, channel, gain = fitted
    return [
        judge(
            check,
            evidence,
            "program",
            measures,
            what="channels of the final hidden state",
            where=Where(method="text_decoder", module="norm", index=(channel,)),
            hint=f"Channel {channel} has gain {gain:.3f}. Check that element of the final norm's weight, and column {channel} of the output head.",
        )
    ]


CHECKS = (
    Check("logits.channels", "quantization", one_case, channels),
    Check("logits.teacher_forced", "quantization", per_image, teacher_forced),
    Check("logits.distribution", "quantization", one_case, distribution),
)
