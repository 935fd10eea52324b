"""`python -m verifier.checks.reference`: docs/checks.md, every check from its docstring, in the order in which blame is sought."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from verifier.checks.check import Check
from verifier.checks.registry import CHECKS
from verifier.core.files import replacing
from verifier.core.types import STEP_MEANS

HEAD = """# Checks

<!-- Written by python -m verifier.checks.reference. Do not edit. -->

In the order in which they are made and blame is sought: the first that fails is nearest to the cause. Choose some with
`--checks 'weights.*'`, `--pte-checks`, or, as tests, with `-m pte_weights` and `-k`. *Limits* are rows of [the tables](tolerances.md) or calibrated metrics. The *step* is what a failure means:

"""


def _said(check: Check) -> str:
    """The docstring of the function that makes a check, as one paragraph; of the family's module where it is made by a closure."""
    found = inspect.getdoc(check.judge) or ""
    return " ".join(found.split())


def _limits(check: Check) -> str:
    """Which rows of docs/tolerances.md, or calibrated metrics, decide; nothing for a check that is met or not."""
    return f" *Limits: {', '.join(f'`{name}`' for name in check.limit)}.*" if check.limit else ""


def reference() -> str:
    """The page."""
    lines = [HEAD + "\n".join(f"- **{step}**: {meaning}." for step, meaning in STEP_MEANS.items())]
    family = ""
    for check in CHECKS:
        own = check.id.partition(".")[0]
        module = inspect.getmodule(check.judge)
        if own != family:
            lines.append(f"\n## {own}\n\n| check | step | what must hold |\n|---|---|---|")
            family = own
        assert module is not None
        said = _said(check) or " ".join((inspect.getdoc(module) or "").split())
        lines.append(f"| `{check.id}` | {check.step} | {said.replace('|', chr(92) + '|')}{_limits(check)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write docs/checks.md of this tree."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/checks.md")
    with replacing(path) as temporary:
        temporary.write_text(reference())


if __name__ == "__main__":
    main()
