"""JUnit XML for CI: one test case per check and case."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from verifier.report.as_json import write_text

if TYPE_CHECKING:
    from verifier.pipeline import Run

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(run: Run) -> str:
    """The XML text."""
    counts = {v: str(sum(r.verdict == v for r in run.results)) for v in ("fail", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=f"verifier {run.artifact.name}",
        tests=str(len(run.results)),
        failures=counts["fail"],
        errors=counts["error"],
        skipped=counts["skipped"],
        time=f"{run.wall_s:.3f}",
    )
    for result in run.results:
        case = ElementTree.SubElement(suite, "testcase", classname=result.id, name=result.case)
        tag = {"fail": "failure", "error": "error", "skipped": "skipped"}.get(result.verdict)
        if tag:
            ElementTree.SubElement(case, tag, message=_NOT_XML.sub("?", result.message))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(run: Run, path: Path) -> None:
    """Write the XML."""
    write_text(path, junit(run))
