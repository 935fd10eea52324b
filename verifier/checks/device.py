"""`device.*`: the machine that the program ran on, where it is of another architecture than this one."""

from __future__ import annotations

from verifier.checks.common import Check, band_of, fixed_cases, one_case, up_to_ties
from verifier.checks.vision import SQNR
from verifier.core.compare import EQUAL_DB, Mismatch, compare
from verifier.core.limits import Limit
from verifier.errors import GoldenError
from verifier.evidence import Evidence
from verifier.ladder.abroad import COMPARED, Counterpart
from verifier.ladder.limits import device_limit_db, least_db
from verifier.types import CheckResult, Where

LENGTHS = ("one token", "several tokens")


def instructions(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The matrix instructions that the machine's kernels rest upon compute what the architecture says."""
    tried = evidence.runtime.conversations.instructions
    if not tried:
        return [
            CheckResult(
                check.id, check.step, "program", "skipped", "this runner does not try the machine's instructions"
            )
        ]
    wrong = {name: said for name, said in tried.items() if said}
    fields = {"measured": {"wrong": len(wrong), "tried": len(tried)}, "allowed": {"wrong": 0}}
    if wrong:
        return [check.error("program", unsound(tried), **fields)]
    return [check.passed("program", f"computed rightly: {', '.join(tried)}", **fields)]


def unsound(tried: dict[str, str]) -> str:
    """What is wrong with a machine that computes instructions wrongly; nothing for a sound one."""
    wrong = [f"{name} ({said})" for name, said in tried.items() if said]
    if not wrong:
        return ""
    return (
        f"this machine computes {' and '.join(wrong)}, whatever the program: what its kernels give says nothing about the file. "
        "An emulator may announce more than it can do (SMOPA in QEMU 7.2 is its issue 2083, right in 10.0): use another version, or "
        "a CPU model without the instruction, such as --target qemu:max,sme=off."
    )


def lengths(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every instruction of the decoder was compared on the device for one token and for several: their kernels are others."""
    layers = evidence.layers
    if layers is None or layers.replay is None:
        return [check.error(case, "no instruction was compared on the device") for case in LENGTHS]
    wanted = layers.replay.computing.get("text_decoder", frozenset())
    results = []
    for case in LENGTHS:
        calls = {n for n, tokens in layers.tokens.items() if (tokens == 1) == (case == LENGTHS[0])}
        seen = frozenset().union(*(layers.replay.covered_in.get(call, frozenset()) for call in calls))
        holes = sorted(wanted - seen)
        measured, allowed = {"compared": len(wanted) - len(holes)}, {"compared": len(wanted)}
        if holes or not wanted:
            where = Where(method="text_decoder", instruction=holes[0]) if holes else None
            message = f"{len(holes)} of {len(wanted)} instructions were not compared for {case}"
            results.append(check.error(case, message, measured=measured, allowed=allowed, where=where))
        else:
            message = f"all {len(wanted)} instructions were compared for {case}"
            results.append(check.passed(case, message, measured=measured, allowed=allowed))
    return results


def host(check: Check, evidence: Evidence) -> list[CheckResult]:
    """On the same inputs the device gives what this machine gives, but for rounding ties of int8."""
    layers = evidence.layers
    if layers is None or isinstance(layers.counterparts, str):
        reason = "the program was not traced" if layers is None else layers.counterparts
        return [check.error(method, f"the two machines cannot be compared: {reason}") for method in COMPARED]
    found = layers.counterparts
    return [_host(check, evidence, method, [c for c in found if c.method == method]) for method in COMPARED]


def _host(check: Check, evidence: Evidence, method: str, pairs: list[Counterpart]) -> CheckResult:
    if not pairs:
        return check.error(method, f"{method} was not called")
    worst, at = EQUAL_DB, pairs[0]
    for pair in pairs:
        made = compare(actual=pair.there, expected=pair.here)
        if isinstance(made, Mismatch):
            said = f"call {pair.call}: the device and this machine cannot be compared on the same inputs: {made.reason}"
            return check.failed(method, f"{said}. See layers.finite.", where=Where(method=method, index=made.index))
        if made.sqnr_db < worst:
            worst, at = made.sqnr_db, pair
    where = Where(method=method, index=(at.call,))
    vision = method == "vision_encoder"
    allowed = _vision_limit(evidence) if vision else up_to_ties(evidence)(worst)
    fields = {"measured": {"sqnr_db": worst}, "allowed": {"sqnr_db": allowed.value}, "where": where}
    if not allowed.admits(worst):
        return check.failed(
            method,
            f"call {at.call}: {worst:.1f} dB between the device and this machine on the same inputs, allowed at least {allowed.value:.1f} dB. "
            "layers.kernel says which instruction of which of the two is wrong.",
            **fields,
        )
    return check.passed(method, f"the device gives what this machine gives, {worst:.0f} dB and more", **fields)


def _vision_limit(evidence: Evidence) -> Limit:
    """Rounding costs as much on another machine as it was seen to cost when this recipe was calibrated."""
    band = band_of(evidence, SQNR)
    clean_db = EQUAL_DB if isinstance(band, GoldenError) else min(band.measured.values(), default=EQUAL_DB)
    return least_db("device.host", device_limit_db(evidence.checkpoint.geometry.vision.layers, clean_db))


CHECKS = (
    Check("device.instructions", "device", one_case, instructions),
    Check("device.lengths", "device", fixed_cases(*LENGTHS), lengths),
    Check("device.host", "device", fixed_cases(*COMPARED), host),
)
