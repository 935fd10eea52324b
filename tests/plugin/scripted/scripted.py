"""Stands in for `verifier.plugin.child`, so that a test of the plugin takes a second: `pytest -p scripted`.

`SCRIPTED` says what the process does when it is asked to verify, `SCRIPTED_LOG` where it notes that it was asked.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

CASES = ["program", "odd[1].png", "odd[12].png", "a b/c::d,e", "ünï", "[", "x]y[z", "@gw0"]


def answer(question: dict) -> dict:
    """Two checks of all cases; the second one fails if `SCRIPTED` says so."""
    if question["do"] == "plan":
        planned = [(check, case) for check in ("structure.metadata", "weights.tensors") for case in CASES]
        return {"planned": [planned for _ in question["requests"]]}
    with Path(os.environ["SCRIPTED_LOG"]).open("a") as log:
        log.write(f"{question['request']['pte']} {question['checks']}\n")
    script = os.environ.get("SCRIPTED", "")
    if script == "slow":
        time.sleep(2.5)
    if script == "dies":
        print("out of memory", file=sys.stderr, flush=True)
        os.abort()
    if script == "kills":
        os.kill(os.getppid(), signal.SIGKILL)
    if script == "refused":
        return {"refused": "the target is gone\n  got: nothing"}
    rest = {"message": "wrong", "measured": "1", "allowed": "0", "where": "here"}
    return {
        "results": [
            {"id": check, "case": case, "verdict": "fail" if (script, check) == ("fail", "weights.tensors") else "pass"}
            | rest
            for check in ("structure.metadata", "weights.tensors")
            for case in CASES
        ]
    }


if __name__ == "__main__":
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(answer(json.loads(line))), flush=True)
else:
    from verifier.plugin import judge

    judge.child_command = lambda module: [sys.executable, "-P", __file__]
