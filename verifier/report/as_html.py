"""The report as one HTML page: no network, no files beside it; everything in it comes from `report.json`."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from verifier.core.records import JsonObject
from verifier.core.types import STEP_MEANS
from verifier.report import plots
from verifier.report.as_json import Report, write_text
from verifier.report.words import (
    EYES_HEADINGS,
    blamed,
    closest,
    eyes_rows,
    golden_line,
    meaning,
    next_command,
    number,
    place,
    said,
    title,
)

OPEN_IMAGES = 4
"""Images that are shown at once, the worst first; the others open on request."""


def html(data: Report) -> str:
    """The page. Text of the report is escaped; its pictures are drawn anew."""
    folder = resources.files("verifier.report")
    script = (folder / "report.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({"report": (folder / "report.html.j2").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["share"] = share_of
    environment.filters["closest"] = closest
    families = list(dict.fromkeys(check["id"].partition(".")[0] for check in data["checks"]))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made: str = environment.get_template("report").render(
        data=data,
        title=title(data),
        meaning=meaning(data),
        blamed=blamed(data),
        place=place(data["blame"]) if data["blame"] else "",
        said=said(data),
        command=next_command(data),
        golden_line=golden_line(data),
        steps=STEP_MEANS,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=digest,
        depth={method: Markup(plots.depth(data, method)) for method in ("vision_encoder", "text_decoder")},
        streams=Markup(plots.streams(data.get("figures", {}))),
        cache=Markup(plots.cache(data.get("figures", {}))),
        images=_images(data),
        weights=_weights(data),
        eyes=eyes_rows(data),
        eyes_headings=EYES_HEADINGS,
        open_images=OPEN_IMAGES,
        stages=_stages(data),
        families=families,
    )
    return made


def _images(data: Report) -> list[JsonObject]:
    """Images with their maps drawn on one scale, so that they can be compared."""
    images = data.get("figures", {}).get("images", [])
    known = [v for image in images for row in image["token_sqnr_db"] or [] for v in row if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    judged = {check["case"]: check["verdict"] for check in data["checks"] if check["id"] == "greedy.golden"}
    made = []
    for image in images:
        table = image["token_sqnr_db"]
        drawn = plots.vision_map(table, low_db=low, high_db=high) if table else None
        values = [v for row in table or [] for v in row if v is not None]
        answer = image["answer"]
        made.append(
            image
            | {
                "map": drawn,
                "least_db": min(values) if values else None,
                "median_db": sorted(values)[len(values) // 2] if values else None,
                "low_db": low,
                "high_db": high,
                "verdict": judged.get(image["name"], "fail"),
                "differs": answer["first_difference"] is not None,
            }
        )
    return made


def _weights(data: Report) -> list[Report]:
    """Audited tensors, the worst first: failures, then by the share of the tolerance that was used."""
    rank = {"fail": 0, "error": 1}
    found = [check for check in data["checks"] if check["id"] == "weights.tensors"]
    return sorted(found, key=lambda c: (rank.get(c["verdict"], 2), -share_of(c)))


def share_of(check: Report) -> float:
    """The share of its tolerance that a check used; 0 where it has none."""
    share = check.get("share")
    return float(share) if isinstance(share, (int, float)) else 0.0


def _stages(data: Report) -> list[tuple[str, float, float]]:
    """Name, seconds, and share of the longest stage."""
    stages = data["cost"].get("stage_s") or {}
    longest = max([*stages.values(), 1e-9])
    return [(name, seconds, seconds / longest) for name, seconds in stages.items()]


def write_html(data: Report, path: Path) -> None:
    """Write the page."""
    write_text(path, html(data))
