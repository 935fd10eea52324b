"""`python -m verifier.session FILE.jsonl --pte PTE`: are the answers that an app recorded those of this file to what it fed?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verifier.core.command import command

if TYPE_CHECKING:
    from verifier.sessions.judge import SessionVerdict

WORDS = {0: "SOUND", 1: "DIFFERENT", 2: "NOT EXPLAINED"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.session",
        description="Judge a recorded session: is each answer this file's to what the app fed, and is that input right?",
        epilog="exit status: 0 all answers are sound, 1 something is wrong and named, 2 not judged, or unexplained",
    )
    parser.add_argument("session", type=Path, metavar="FILE.jsonl", help="the recorded session (docs/sessions.md)")
    parser.add_argument("--pte", type=Path, required=True, help="the file that the app ran")
    parser.add_argument("--model", help="the checkpoint: a folder, or a name of the hub (default: the embedded model)")
    parser.add_argument("--tokenizer", type=Path, help="the tokenizer file that ships (default: beside the program)")
    parser.add_argument("--json", type=Path, help="write what was found as JSON, too")
    return parser


@command("NOT VERIFIED")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    from verifier.core.progress import hushed
    from verifier.gather.opening import Request
    from verifier.report.as_json import write_text
    from verifier.sessions.judge import judge_session
    from verifier.sessions.opening import open_subject
    from verifier.sessions.records import read_session

    session = read_session(options.session)
    with hushed():
        subject = open_subject(Request(options.pte, options.model, tokenizer=options.tokenizer))
        verdict = judge_session(session, subject)
    print(shown(verdict))
    if options.json is not None:
        write_text(options.json, json.dumps(as_json(verdict), indent=1) + "\n")
    return verdict.exit_status


def shown(verdict: SessionVerdict) -> str:
    """The verdict as text: every turn that is not sound, then all in one line."""
    lines = [f"whole session: {cause}" for cause in verdict.causes]
    for judged in verdict.turns:
        if judged.outcome != "sound":
            causes = "; ".join(judged.causes) or "unexplained"
            lines += [f"line {judged.turn.line}: {causes}", f"  {judged.said}"]
    lines += [f"note: {note}" for note in verdict.notes]
    sound = sum(judged.outcome == "sound" for judged in verdict.turns)
    return "\n".join([*lines, f"{WORDS[verdict.exit_status]}: {sound} of {len(verdict.turns)} turns are sound"])


def as_json(verdict: SessionVerdict) -> dict[str, object]:
    """The verdict as data."""
    return {
        "schema": "verifier.session-verdict/1",
        "exit_status": verdict.exit_status,
        "causes": list(verdict.causes),
        "notes": list(verdict.notes),
        "turns": [
            {"line": one.turn.line, "outcome": one.outcome, "causes": list(one.causes), "said": one.said}
            for one in verdict.turns
        ],
    }
