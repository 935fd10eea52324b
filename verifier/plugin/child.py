"""The process that opens and verifies for `pytest --pte`: a question as JSON on each line of its input, an answer on each line of its output.

A process of its own: the caller's folder, options, warnings and plugins do not reach it, and importing torch costs the caller nothing.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from verifier.core.command import split_globs
from verifier.core.errors import VerifierError
from verifier.core.extras import require_extra
from verifier.core.prices import parse_prices
from verifier.core.python import with_room
from verifier.core.records import JsonObject
from verifier.core.system import die_with_parent
from verifier.gather.opening import Request, open_request, planned_cases
from verifier.pipeline import verify
from verifier.report.as_json import report
from verifier.report.folder import write_folder

RESULT = ("id", "case", "verdict", "message", "measured", "allowed", "where")
"""What a test says of a result."""


def answer(question: JsonObject) -> JsonObject:
    """The planned cases of every request, or the results of one; in either case `refused` with a text if there are none."""
    try:
        if question["do"] == "plan":
            return {"planned": [_planned(_request(asked)) for asked in question["requests"]]}
        return {"results": _results(question)}
    except VerifierError as error:
        return {"refused": str(error)}
    except Exception:
        return {"refused": f"the verifier itself failed; please report this:\n{traceback.format_exc()}"}


def _request(asked: JsonObject) -> Request:
    checks, images = split_globs(asked["checks"]), split_globs(asked["images"])
    if asked["report"]:
        require_extra("report", "--pte-report")
    reproduction = Path(asked["report"]) / "reproduction" if asked["report"] else None
    return Request(
        Path(asked["pte"]),
        asked["model"],
        asked["target"],
        checks,
        reproduction=reproduction,
        images=images,
        tokenizer=Path(asked["tokenizer"]) if asked["tokenizer"] else None,
        prices=parse_prices([asked["budget"]]),
        apps=split_globs(asked["apps"]),
    )


def _planned(request: Request) -> list[tuple[str, str]]:
    opened = open_request(request)
    with closing(opened.runner):
        return planned_cases(opened)


def _results(question: JsonObject) -> list[JsonObject]:
    asked = question["request"]
    request = _request(asked)
    if question["checks"] is not None:
        request = replace(request, checks=tuple(question["checks"]))
    data = report(verify(request))
    if asked["report"]:
        write_folder(data, Path(asked["report"]))
    return [{name: check[name] for name in RESULT} for check in data["checks"]]


def main() -> None:
    """Answer until there are no more questions. What libraries print goes with the errors."""
    die_with_parent()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in iter(sys.stdin.readline, ""):
            answers.write(json.dumps(with_room(answer, json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
