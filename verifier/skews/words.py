"""A comparison of runtimes in words: a line for each release, and what to think of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verifier.report.as_json import finite
from verifier.skews.records import FirstChange, RuntimeSkew, Skew

STATUS = {"same": 0, "rounding": 0, "answers": 0, "not run": 2, "not judged": 2, "beyond": 1}
"""Exit statuses, the least important finding first: a first change beyond the limit of its instruction is a fault of one of the runtimes."""
MEANS = {
    "same": "the same bits in every call",
    "rounding": "other bits, by rounding alone: every first change keeps the limit of its instruction on both runtimes",
    "answers": "other bits by rounding alone, which is enough for another free answer: ties between tokens go the other way",
    "beyond": "an instruction is further from the program's bytes than rounding goes: one of the runtimes is wrong",
    "not judged": "the first change cannot be judged",
    "not run": "the program did not run there, so nothing is known",
}


def exit_status(skew: Skew) -> int:
    """1 if a runtime is wrong, else 2 if one is not known, else 0."""
    found = {STATUS[one.finding] for one in skew.runtimes}
    return 1 if 1 in found else max(found, default=2)


def as_data(skew: Skew) -> Any:
    """For a file: plain values, with a reason in the place of what is no number."""
    made = asdict(skew)
    for runtime, data in zip(skew.runtimes, made["runtimes"], strict=True):
        data["finding"] = runtime.finding
    return finite({"schema": "verifier.skew/1", "exit_status": exit_status(skew), **made})


def lines(skew: Skew) -> list[str]:
    """Plain text, the first line is the outcome."""
    worst = max(skew.runtimes, key=lambda one: list(STATUS).index(one.finding), default=None)
    head = "no other runtime was asked" if worst is None else f"{worst.runtime}: {MEANS[worst.finding]}"
    others = "1 other release" if len(skew.runtimes) == 1 else f"{len(skew.runtimes)} other releases"
    said = [f"{skew.pte} on executorch {skew.base}, compared with {others}. {head}"]
    for one in skew.runtimes:
        said.append(f"{one.runtime}: {one.finding}{f' ({one.reason})' if one.reason else ''}")
        said += [f"  {line}" for line in _details(one, skew.base)]
    return said


def _details(one: RuntimeSkew, base: str) -> list[str]:
    said = []
    for method in one.methods:
        if not method.differing:
            continue
        said.append(
            f"{method.method}: {method.differing} of {method.calls} calls have other bits, at worst {method.sqnr_db:.1f} dB"
        )
        if method.problem:
            said.append(f"  what begins it could not be found: {method.problem}")
        elif method.first is not None:
            said.append(f"  begins in {_change(method.first, base, one.runtime)}")
        elif not method.alone:
            said.append("  with the same inputs it gives the same bits: the difference comes from the method before it")
        else:
            said.append(
                "  no single instruction begins it: the difference is in how results are returned or caches are kept"
            )
    if said:
        said.append(
            f"another token is favoured at {one.other_tokens} of {one.tokens} positions of the same conversations; "
            f"{len(one.other_answers)} of {one.answers} free answers differ{': ' if one.other_answers else ''}{', '.join(one.other_answers)}"
        )
    return said


def _change(first: FirstChange, base: str, runtime: str) -> str:
    where = f"{first.module or first.method}, instruction {first.instruction} in call {first.call} [{first.call_text}]"
    much = f"{100 * first.share_off:.3g} % of elements, {first.sqnr_db:.1f} dB"
    if first.unknown:
        return f"{where}: {much}; not judged: {first.unknown}"
    return f"{where}: {much}; of its limit {base} uses {first.base_share:.2g}, {runtime} {first.share:.2g}"


def print_skew(skew: Skew, *, quiet: bool) -> None:
    """To the terminal; only the first line if `quiet`."""
    said = lines(skew)
    if quiet:
        print(said[0])
        return
    console = Console()
    table = Table("runtime", "finding", "calls with other bits", "tokens", "free answers", box=None)
    for one in skew.runtimes:
        calls = f"{sum(m.differing for m in one.methods)} of {sum(m.calls for m in one.methods)}" if one.methods else ""
        tokens = f"{one.other_tokens} of {one.tokens}" if one.tokens else ""
        free = f"{len(one.other_answers)} of {one.answers}" if one.answers else ""
        table.add_row(one.runtime, one.finding, calls, tokens, free)
    console.print(Text(said[0]))
    console.print(table)
    for line in said[1:]:
        console.print(Text(line))
