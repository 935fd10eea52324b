"""`device.*`: the Arm machine that the program ran on, be it this one or another; `device.host` needs another one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from verifier.checks.bands import TIES, band_of, up_to_ties
from verifier.checks.check import (
    DEVICE,
    ELSEWHERE,
    Fields,
    Finding,
    check,
    failed,
    fixed_cases,
    need,
    one_case,
    passed,
    skipped,
    unverified,
)
from verifier.checks.vision import SQNR
from verifier.core.compare import EQUAL_DB, Mismatch
from verifier.core.limits import Limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER, ENCODER
from verifier.ladder.evidence import COMPARED, Counterpart, LayerEvidence
from verifier.ladder.limits import device_limit_db, least_db
from verifier.measures.evidence import Evidence, Part
from verifier.runner.protocol import Result

LENGTHS = ("one token", "several tokens")


@need(Part.INSTRUCTIONS, computed=True)
def machine(evidence: Evidence) -> Result | Missing:
    """What the target says of itself."""
    return evidence.runtime.conversations


@check(
    "device.instructions",
    step="device",
    needs=machine,
    cases=one_case,
    having={DEVICE},
    optional=True,
    overlap="it asks the CPU of a device; the bench runs on this machine, and tests break an instruction's result",
)
def instructions(ran: Result, _case: str) -> Finding:
    """The matrix instructions that the machine's kernels use compute what the architecture defines."""
    tried = ran.instructions
    if not tried:
        return skipped("this runner does not test the machine's matrix instructions")
    wrong = {name: said for name, said in tried.items() if said}
    fields: Fields = {"measured": {"wrong": len(wrong), "tried": len(tried)}, "allowed": {"wrong": 0}}
    if wrong:
        return unverified(unsound(tried), fields)
    return passed(f"computed correctly: {', '.join(tried)}", fields)


def unsound(tried: dict[str, str]) -> str:
    """What is wrong with a machine that computes instructions wrongly; nothing for a sound one."""
    wrong = [f"{name} ({said})" for name, said in tried.items() if said]
    if not wrong:
        return ""
    return (
        f"this machine computes {' and '.join(wrong)} wrongly, whatever the program: results of its kernels prove nothing about the file. "
        "An emulator may announce instructions that it computes wrongly (SMOPA in QEMU 7.2, its issue 2083, correct in 10.0): use another version, or "
        "a CPU model without the instruction, such as --target qemu:max,sme=off."
    )


@need(Part.LAYERS, Part.INSTRUCTIONS, computed=True)
def replayed(evidence: Evidence) -> LayerEvidence | Missing:
    """What was compared instruction by instruction."""
    layers = evidence.layers
    if isinstance(layers, Missing):
        return Missing("no instruction was compared on the device", "verifier")
    return layers


@check(
    "device.lengths",
    step="device",
    needs=replayed,
    cases=fixed_cases(*LENGTHS),
    having={DEVICE},
    overlap="it compares a device with this machine; the bench has no device, and tests give one wrong numbers",
)
def lengths(layers: LayerEvidence, case: str) -> Finding:
    """Every instruction of the decoder was compared on the device for one token and for several, because XNNPACK selects different kernels for each."""
    wanted = set(layers.replay.computing.get(DECODER, ()))
    calls = {n for n, tokens in layers.tokens.items() if (tokens == 1) == (case == LENGTHS[0])}
    seen = {instruction for call in calls for instruction in layers.replay.covered_in.get(call, ())}
    holes = sorted(wanted - seen)
    fields: Fields = {"measured": {"compared": len(wanted) - len(holes)}, "allowed": {"compared": len(wanted)}}
    if holes or not wanted:
        where = Where(method=DECODER, instruction=holes[0]) if holes else None
        return unverified(
            f"{len(holes)} of {len(wanted)} instructions were not compared for {case}", fields, where=where
        )
    return passed(f"all {len(wanted)} instructions were compared for {case}", fields)


@dataclass(frozen=True)
class Both:
    """The same calls there and here, and all other evidence."""

    evidence: Evidence
    found: tuple[Counterpart, ...]


@need(Part.LAYERS, Part.INSTRUCTIONS, computed=True)
def counterparts(evidence: Evidence) -> Both | Missing:
    """The traced calls on both machines."""
    layers = evidence.layers
    found = Missing("the program was not traced", "verifier") if isinstance(layers, Missing) else layers.counterparts
    if isinstance(found, Missing):
        return Missing(f"the two machines cannot be compared: {found.reason}", "verifier")
    return Both(evidence, found)


@check(
    "device.host",
    step="device",
    needs=counterparts,
    cases=fixed_cases(*COMPARED),
    limit=("device.host.vision", *TIES),
    having={DEVICE, ELSEWHERE},
    overlap="it compares a device with this machine; the bench has no device, and tests give one wrong numbers",
)
def host(both: Both, method: str) -> Finding:
    """On the same inputs the outputs on the device equal those on this machine, except for rounding ties of int8."""
    pairs = [pair for pair in both.found if pair.method == method]
    if not pairs:
        return unverified(f"{method} was not called")
    found: list[tuple[float, int]] = []
    for pair in pairs:
        value = pair.sqnr_db
        if isinstance(value, Mismatch):
            said = (
                f"call {pair.call}: the device and this machine cannot be compared on the same inputs: {value.reason}"
            )
            return failed(f"{said}. See layers.finite.", where=Where(method=method, index=value.index))
        found.append((value, pair.call))
    worst, call = min(found, key=lambda pair: (math.isfinite(pair[0]), *pair))
    where = Where(method=method, index=(call,))
    vision = method == ENCODER
    allowed = _vision_limit(both.evidence) if vision else up_to_ties(both.evidence)(worst)
    fields: Fields = {"measured": {"sqnr_db": worst}, "allowed": {"sqnr_db": allowed.value}, "where": where}
    if not allowed.admits(worst):
        return failed(
            f"call {call}: {worst:.1f} dB between the device and this machine on the same inputs, allowed at least {allowed.value:.1f} dB. "
            "layers.kernel names the wrong instruction, and on which of the two machines it is wrong.",
            fields,
        )
    return passed(f"the outputs on the device equal those on this machine, {worst:.0f} dB or more", fields)


def _vision_limit(evidence: Evidence) -> Limit:
    """Rounding costs as much on another machine as it was seen to cost when this recipe was calibrated."""
    band = band_of(evidence, SQNR)
    clean_db = EQUAL_DB if isinstance(band, Missing) else min(band.measured.values(), default=EQUAL_DB)
    return least_db("device.host", device_limit_db(evidence.geometry.vision.layers, clean_db))


CHECKS = (lengths, host)
"""`instructions` stands before the layers in the registry."""
