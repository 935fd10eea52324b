"""`embedding.*`: the token embedding over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

from verifier.checks.bands import Measure, judge
from verifier.checks.check import Fields, Finding, check, failed, need, one_case
from verifier.core.limits import limit
from verifier.core.prices import judged_by
from verifier.core.types import Missing, Where
from verifier.families.conventions import EMBEDDING
from verifier.measures.against_fp32 import VocabularyError
from verifier.measures.evidence import Evidence, Part

STEPS = limit("embedding.tokens")


SQNR = "embedding.sqnr_db"


@dataclass(frozen=True)
class Vocabulary:
    """The error of the program's table of all tokens, and all other evidence."""

    evidence: Evidence
    error: VocabularyError


@need(Part.VOCABULARY, computed=True)
def vocabulary(evidence: Evidence) -> Vocabulary | Missing:
    """The error of the program's table of all tokens."""
    error = evidence.vocabulary
    return error if isinstance(error, Missing) else Vocabulary(evidence, error)


@check(
    "embedding.tokens",
    step="quantization",
    needs=vocabulary,
    cases=one_case,
    limit=("embedding.tokens", "embedding.tokens.hqq", *judged_by(SQNR)),
    overlap="a wrong row of the table is found by its bytes; this one looks at what the runtime makes of all rows",
)
def tokens(given: Vocabulary, case: str) -> Finding:
    """The embedding of every token id lies within half a quantization step of the checkpoint's, or as near to it as HQQ's own rounding leaves it; the
    error of the whole table is within the budget of quantization."""
    error = given.error
    unit = "absolute" if error.bits == 32 else "steps"
    fields: Fields = {
        "measured": {"worst_steps": error.worst, "sqnr_db": error.sqnr_db},
        "allowed": {"worst_steps": error.allowed},
        "where": Where(method=EMBEDDING, index=error.index),
    }
    if not STEPS.of(error.allowed).admits(error.worst):
        row, column = error.index
        return failed(
            f"{error.rows_off} of {error.tokens} token embeddings differ from the checkpoint's; worst is token {row}, column {column}: {error.worst:.2f} {unit}, allowed {error.allowed:.2f}. "
            "Check that these embedding weights and scales are this checkpoint's.",
            fields,
        )
    price = judge(
        given.evidence,
        case,
        [Measure(SQNR, error.sqnr_db, "dB")],
        what="the table of all tokens",
        where=Where(method=EMBEDDING),
        hint="Give the embedding more bits or smaller groups.",
    )
    if price.verdict != "pass":
        return price.but(measured={**price.fields["measured"], **fields["measured"]})
    said = f"{error.tokens} tokens, worst {error.worst:.3f} {unit}, {error.sqnr_db:.1f} dB"
    return replace(price, message=said, fields=fields)


CHECKS = (tokens,)
