"""What people hold an exported LLaVA against today, on the same artifact and the same run.

(a) upstream's test: the caption begins with nine known words (executorch/examples/models/llava/test/test_llava.py);
(b) upstream's script: five tokens came out (test_pte.py there);
(c) logits against fp32 with an SQNR of at least 10 dB and a cosine of at least 0.95 (ExecuTorch's Qualcomm samples);
(d) top-1 agreement with fp32, at least 95 % of the answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from verifier.core.compare import Array
from verifier.measures.evidence import Evidence

WORDS, TOKENS, LEAST_DB, LEAST_COSINE, LEAST_TOP1 = 9, 5, 10.0, 0.95, 0.95
NAMES = {"caption": "nine words", "tokens": "five tokens", "logits": "SQNR and cosine", "top1": "top-1"}


def _first_answer(evidence: Evidence) -> tuple[str, Array | None]:
    name, logits = next(iter(evidence.runtime.free.items()))
    return next(case.sample.golden.text for case in evidence.cases if case.sample.golden.name == name), logits


def _caption(evidence: Evidence) -> bool:
    text, logits = _first_answer(evidence)
    if logits is None:
        return False
    said = evidence.tokens.decode([int(token) for token in logits.argmax(-1)])
    return said.startswith(" ".join(text.split()[:WORDS]))


def _tokens(evidence: Evidence) -> bool:
    logits = _first_answer(evidence)[1]
    return logits is not None and len(logits) >= TOKENS


def _pairs(evidence: Evidence) -> tuple[Any, Any] | None:
    if any(case.logits is None for case in evidence.cases):
        return None
    actual = np.concatenate([np.asarray(case.logits) for case in evidence.cases]).astype(np.float64)
    return actual, np.concatenate([case.expected.logits for case in evidence.cases]).astype(np.float64)


def _logits(evidence: Evidence) -> bool:
    pairs = _pairs(evidence)
    if pairs is None:
        return False
    actual, expected = pairs
    noise = float(np.square(actual - expected).sum())
    sqnr_db = 10 * np.log10(float(np.square(expected).sum()) / noise) if noise else np.inf
    cosine = float((actual * expected).sum()) / float(np.linalg.norm(actual) * np.linalg.norm(expected))
    return bool(sqnr_db >= LEAST_DB and cosine >= LEAST_COSINE)


def _top1(evidence: Evidence) -> bool:
    pairs = _pairs(evidence)
    return pairs is not None and float(np.mean(pairs[0].argmax(-1) == pairs[1].argmax(-1))) >= LEAST_TOP1


_HELD: dict[str, Callable[[Evidence], bool]] = {
    "caption": _caption,
    "tokens": _tokens,
    "logits": _logits,
    "top1": _top1,
}


def passes(evidence: Evidence) -> dict[str, bool]:
    """Which of today's checks an artifact passes."""
    return {name: held(evidence) for name, held in _HELD.items()}
