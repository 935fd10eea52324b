"""`weights.*`: the bytes of every constant against the checkpoint, without running the file."""

from __future__ import annotations

from verifier.audit.compare import Audited
from verifier.audit.run import Audit
from verifier.checks.common import Check, one_case, per_parameter
from verifier.core.limits import limit
from verifier.errors import VerifierError
from verifier.evidence import Evidence
from verifier.ladder.align import block_of
from verifier.model.keymap import module_of
from verifier.types import CheckResult, Where

STEPS = limit("weights.tensors.worst_steps")


def _audit(check: Check, evidence: Evidence, cases: tuple[str, ...]) -> Audit | list[CheckResult]:
    if isinstance(evidence.audit, VerifierError):
        reason = evidence.audit.one_line
        return [check.error(case, f"the constants cannot be audited: {reason}") for case in cases]
    return evidence.audit


def tensors(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Integers and scales of every parameter are exactly those that the recipe makes of the checkpoint."""
    cases = evidence.subjects.parameters
    audit = _audit(check, evidence, cases)
    if not isinstance(audit, Audit):
        return audit
    found: dict[str, list[Audited]] = {}
    for record in audit.constants:
        found.setdefault(record.name, []).append(record)
    strange = [record for record in audit.constants if not record.explained and record.name not in cases]
    return [_tensor(check, evidence, case, found.get(case, []), strange) for case in cases]


def _tensor(check: Check, evidence: Evidence, case: str, records: list[Audited], strange: list[Audited]) -> CheckResult:
    """The result for one parameter. `strange` are constants of which nothing is known: a parameter that was not found may be among them."""
    method, module = case.partition(".")[0], module_of(case)
    candidates = [record for record in strange if record.method == method]
    if not records and candidates and evidence.manifest is None:
        first = candidates[0]
        return check.error(
            case,
            f"{module} was not found, and {len(candidates)} constants of {method} are in no form that is known, first {first.role} at "
            f"instruction {first.instruction} ({first.elements:,} elements): this exporter's layout of constants is not understood",
            where=Where(method=method, instruction=first.instruction, module=module),
        )
    if not records:
        return check.failed(
            case,
            f"{module}: no constant of the program holds this tensor. Was it dropped, or replaced by other weights? "
            "Export the checkpoint again and compare.",
            where=Where(method=method, module=module),
        )
    worst = next((record for record in records if record.reason), records[0])
    where = Where(method=method, instruction=worst.instruction, module=module, index=worst.index)
    measured = {"wrong": worst.wrong, "sqnr_db": worst.sqnr_db, "worst_steps": worst.worst_steps}
    if worst.group is not None:
        measured["worst_group"] = list(worst.group)  # type: ignore[assignment]
    bound = STEPS if _rounded(evidence, worst) else None
    allowed = {"wrong": 0} | ({"worst_steps": bound.value} if bound is not None else {})
    if not worst.explained and evidence.manifest is None:
        said = f"{module}: {worst.reason}; the file has no manifest, and its recipe is not understood"
        return check.error(case, said, measured=measured, where=where)
    if worst.reason:
        hint = "The bytes changed after quantization, or came from other weights: compare SHA-256 with the manifest, then export again."
        return check.failed(case, f"{module}: {worst.reason}. {hint}", measured=measured, allowed=allowed, where=where)
    if bound is not None and worst.worst_steps is not None and not bound.admits(worst.worst_steps):
        return check.failed(
            case,
            f"{module}: element {list(worst.index or ())} is {worst.worst_steps:.3f} steps from the checkpoint, allowed {bound.value:g}. "
            "Rounding alone leaves half a step: check the quantizer.",
            measured=measured,
            allowed=allowed,
            where=where,
        )
    said = (
        "as the recipe gives it"
        if worst.sqnr_db is None
        else f"as the recipe gives it, {worst.sqnr_db:.1f} dB from the checkpoint"
    )
    return check.passed(case, said, measured=measured, allowed=allowed, where=where)


def _rounded(evidence: Evidence, record: Audited) -> bool:
    """Whether the tensor is rounded to the nearest without clipping: linears and convolutions, unless by HQQ."""
    if record.role == "convolution" or (record.role == "linear" and record.method == "vision_encoder"):
        return True
    return record.role == "linear" and evidence.recipe.quantizer == "affine"


def derived(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Constants that no tensor holds follow from the configuration: epsilons, RoPE, mean and std, QuickGELU, scales, masks."""
    audit = _audit(check, evidence, ("program",))
    if not isinstance(audit, Audit):
        return audit
    records = [record for record in audit.constants if record.name not in evidence.subjects.parameters]
    wrong = [record for record in records if record.reason]
    measured = {"constants": len(records), "wrong": len(wrong)}
    if not records:
        return [check.error("program", "the program has no derived constants: nothing was compared")]
    if wrong and evidence.manifest is None and not any(record.explained for record in wrong):
        first = wrong[0]
        where = Where(method=first.method, instruction=first.instruction, module=_owner(audit, first))
        said = f"{len(wrong)} constants are not understood, first {first.role} at instruction {first.instruction} of {first.method}: {first.reason}"
        return [check.error("program", said, measured=measured, where=where)]
    if wrong:
        first = next((record for record in wrong if record.explained), wrong[0])
        module = _owner(audit, first)
        where = Where(method=first.method, instruction=first.instruction, module=module, index=first.index)
        message = f"{module}, {first.role} at instruction {first.instruction}: {first.reason}. Check config.json and the recipe."
        return [check.failed("program", message, measured=measured, allowed={"wrong": 0}, where=where)]
    dead = f"; {audit.dead_bytes:,} bytes of constants are read by no instruction" if audit.dead_bytes else ""
    message = f"{len(records)} constants follow from the configuration{dead}"
    return [check.passed("program", message, measured=measured, allowed={"wrong": 0})]


def _owner(audit: Audit, record: Audited) -> str:
    """The module whose instruction uses a derived constant; else the block of the latest weight before it, or the method, and the
    constant's role."""
    block = record.method
    for constant, parameter in zip(audit.inventory, audit.parameters, strict=True):
        if parameter is None or constant.method != record.method or constant.instruction > record.instruction:
            continue
        if constant.instruction == record.instruction:
            return parameter.module
        block = block_of(parameter.name)
    return f"{block}.{record.role.replace(' ', '_')}"


def placement(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every tensor stands where the computation needs it: layer after layer, stage after stage."""
    audit = _audit(check, evidence, ("program",))
    if not isinstance(audit, Audit):
        return audit
    if audit.misplaced:
        first = audit.misplaced[0]
        where = Where(method=first.method, instruction=first.instruction, module=first.expected)
        message = (
            f"{first.expected}: instruction {first.instruction} of {first.method} holds {first.found} instead. "
            "Two tensors were swapped: check the key map of the export."
        )
        return [check.failed("program", message, where=where)]
    held = sum(parameter is not None for parameter in audit.parameters)
    if not held:
        return [check.error("program", "the program holds no tensor of the checkpoint: nothing was compared")]
    message = f"{held} tensors in the order of the computation, {len(audit.unused)} tensors of the checkpoint unused by LLaVA-1.5"
    return [check.passed("program", message)]


CHECKS = (
    Check("weights.tensors", "lowering", per_parameter, tensors),
    Check("weights.derived", "lowering", one_case, derived),
    Check("weights.placement", "lowering", one_case, placement),
)
