"""What a reader looks at rather than reads, as plain data for the report: small, rounded, and computed from the evidence alone."""

from __future__ import annotations

import numpy as np

from verifier.checks.bands import up_to_ties
from verifier.checks.vision import channel_center, compare_about
from verifier.core.compare import EQUAL_DB, Array, Difference, compare, top2_margin
from verifier.core.records import JsonObject
from verifier.core.types import Missing
from verifier.families.conventions import DECODER
from verifier.measures.evidence import Case, Evidence
from verifier.measures.eyes import EyesEvidence

SHOWN_IMAGES = 40
SHOWN_TOKENS = 256


def figures(evidence: Evidence) -> JsonObject:
    """`images` with the error of every image token and both answers, `streams` by token and layer, `cache` by split and position, `eyes` by app; what was
    not gathered is left out."""
    made: JsonObject = {}
    cases = [*evidence.cases, *([evidence.user_case] if evidence.user_case is not None else [])]
    if cases:
        center = channel_center(evidence) if evidence.cases else None
        mapped = sorted(((case, _token_db(case, center)) for case in cases), key=lambda pair: _loss(pair[1]))
        made["images"] = [_image(evidence, case, rows) for case, rows in mapped[:SHOWN_IMAGES]]
    streams = _streams(evidence)
    if streams:
        made["streams"] = streams
    cache = _cache(evidence)
    if cache:
        made["cache"] = cache
    if not isinstance(evidence.eyes, Missing):
        made["eyes"] = _eyes(evidence.eyes)
    return made


def _rounded(values: Array) -> list[float | None]:
    return [round(float(v), 1) if np.isfinite(v) else None for v in values]


def _token_db(case: Case, center: Array | None) -> Array | None:
    """SQNR of every image token about the common mean; None if there is nothing to compare."""
    made = compare_about(case, center) if center is not None else None
    return made.row_sqnr_db if isinstance(made, Difference) else None


def _loss(rows: Array | None) -> tuple[bool, float]:
    """Sorts images worst first, those without a map before all others."""
    return (False, 0.0) if rows is None else (True, float(np.percentile(rows, 10)))


def _image(evidence: Evidence, case: Case, rows: Array | None) -> JsonObject:
    golden = case.sample.golden
    side = round(evidence.patches**0.5)
    grid = None if rows is None else [_rounded(row) for row in rows.reshape(side, side)]
    return {
        "name": golden.name,
        "kind": golden.kind,
        "question": golden.question,
        "jpeg_base64": case.thumbnail,
        "token_sqnr_db": grid,
        "answer": _answer(evidence, case),
    }


def _answer(evidence: Evidence, case: Case) -> JsonObject:
    """Golden tokens with fp32's margin, and what the program favours at each, fed with the golden ones."""
    golden = case.sample.golden
    said = None
    if case.logits is not None and np.isfinite(case.logits).all():
        said = [int(i) for i in case.logits.argmax(-1)]
    margins = golden.margins or tuple(float(m) for m in top2_margin(case.expected.logits))
    piece = evidence.tokens.piece
    tokens = [
        {
            "expected": piece(token),
            "actual": None if said is None else piece(said[at]),
            "same": said is not None and said[at] == token,
            "margin": round(float(margins[at]), 3),
        }
        for at, token in enumerate(golden.ids[:SHOWN_TOKENS])
    ]
    return {
        "expected": golden.text or evidence.tokens.decode(golden.ids),
        "actual": None if said is None else evidence.tokens.decode(said),
        "tokens": tokens,
        "first_difference": next((at for at, token in enumerate(tokens) if not token["same"]), None),
    }


def _streams(evidence: Evidence) -> JsonObject | None:
    """SQNR of the residual stream against fp32, a row for each decoder layer and a column for each traced position of one conversation."""
    if isinstance(evidence.layers, Missing):
        return None
    found = [error for error in evidence.layers.profile if error.rows_db and error.block.startswith(DECODER)]
    if not found:
        return None
    sample = found[0].sample
    rows: dict[str, dict[int, float]] = {}
    for error in found:
        if error.sample == sample:
            row = rows.setdefault(error.block, {})
            row |= {error.start + at: value for at, value in enumerate(error.rows_db)}
    positions = sorted({position for row in rows.values() for position in row})
    table = [_rounded(np.array([row.get(p, np.nan) for p in positions])) for row in rows.values()]
    return {"image": sample, "positions": positions, "layers": list(rows), "sqnr_db": table}


def _eyes(eyes: EyesEvidence) -> JsonObject:
    """The score of every app's picture path, and the sizes that the program refuses."""
    apps: list[JsonObject] = []
    for name, app, score in eyes.scores():
        refused = [f"{width} x {height}" for width, height in (one.size for one in eyes.refused(app.sizes))]
        apps.append(
            {
                "name": name,
                "title": app.title,
                "asked": score.asked,
                "lost": score.lost,
                "interval": [round(end, 6) for end in score.interval],
                "aborts": score.aborts,
                "identical": score.identical,
                "median_db": None if score.median_db is None else round(score.median_db, 1),
                "sizes": len(app.sizes),
                "tried": not eyes.untried(app.sizes),
                "refused": refused,
            }
        )
    return {"pictures": eyes.chosen, "apps": apps}


def _cache(evidence: Evidence) -> JsonObject | None:
    """SQNR between the logits of two splits at the same position."""
    probe = evidence.runtime.cache
    if isinstance(probe, Missing) or isinstance(probe.chunks, Missing):
        return None
    outputs = probe.chunks.result.outputs
    cells: list[JsonObject] = []
    for pair in probe.chunks.pairs:
        actual, expected = outputs.get(pair.actual), outputs.get(pair.expected)
        made = compare(actual=actual, expected=expected)
        value = round(made.sqnr_db, 1) if isinstance(made, Difference) else None
        cells.append({"split": pair.case, "position": pair.position, "sqnr_db": value})
    lowest = min((cell["sqnr_db"] for cell in cells if cell["sqnr_db"] is not None), default=EQUAL_DB)
    return {"limit": probe.limit, "allowed_db": up_to_ties(evidence)(lowest).value, "cells": cells}
