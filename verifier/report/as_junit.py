"""JUnit XML for CI: one test case per check and case."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from verifier.report.as_json import Report, write_text

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(data: Report) -> str:
    """The XML text."""
    checks = data["checks"]
    counts = {v: str(sum(c["verdict"] == v for c in checks)) for v in ("fail", "error", "skipped")}
    suite = ElementTree.Element(
        "testsuite",
        name=_clean(f"verifier {Path(data['artifact']['path']).name}"),
        tests=str(len(checks)),
        failures=counts["fail"],
        errors=counts["error"],
        skipped=counts["skipped"],
        time=f"{data['cost']['wall_s']:.3f}",
    )
    for check in checks:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(check["id"]), name=_clean(check["case"]))
        tag = {"fail": "failure", "error": "error", "skipped": "skipped"}.get(check["verdict"])
        if tag:
            ElementTree.SubElement(case, tag, message=_clean(check["message"]))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)


def write_junit(data: Report, path: Path) -> None:
    """Write the XML."""
    write_text(path, junit(data))
