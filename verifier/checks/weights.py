"""`weights.*`: the bytes of every constant against the checkpoint, without running the file."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.audit.records import Audited, AuditRecords
from verifier.checks.check import Fields, Finding, check, failed, need, one_case, passed, per_parameter, unverified
from verifier.core.limits import limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import ENCODER, module_of
from verifier.measures.evidence import Evidence, Part, Subjects

STEPS, ALIKE = limit("weights.tensors.worst_steps"), limit("weights.alike")
LIMITS_OF_TENSORS = (STEPS.id, "weights.tensors.scale", "weights.tensors.bias")


@dataclass(frozen=True)
class Audits:
    """The audit with its constants by the name of their parameter, and all other evidence. `strange` are constants of which nothing is known: a
    parameter that was not found may be among them."""

    evidence: Evidence
    audit: AuditRecords
    by_name: dict[str, list[Audited]]
    strange: tuple[Audited, ...]


@need(Part.AUDIT)
def audited(evidence: Evidence) -> Audits | Missing:
    """The comparison of all constants with the checkpoint's. A file that cannot be audited is not shown to be wrong."""
    audit = evidence.audit
    if isinstance(audit, Missing):
        return Missing(f"the constants cannot be audited: {audit.reason}", "verifier")
    by_name: dict[str, list[Audited]] = {}
    for record in audit.constants:
        by_name.setdefault(record.name, []).append(record)
    known = frozenset(evidence.subjects.parameters)
    strange = tuple(record for record in audit.constants if not record.explained and record.name not in known)
    return Audits(evidence, audit, by_name, strange)


def component(parameter: str) -> str:
    """The component of the model that an exporter loads as one: `vision_encoder.tower`, `vision_encoder.projector`, `text_decoder`."""
    return ".".join(parameter.split(".")[: 2 if parameter.startswith(f"{ENCODER}.") else 1])


def per_component(subjects: Subjects) -> tuple[str, ...]:
    """One case for each component of the model."""
    return tuple(dict.fromkeys(component(name) for name in subjects.parameters))


@check(
    "weights.loaded",
    step="lowering",
    needs=audited,
    cases=per_component,
    limit=ALIKE.id,
    overlap="tensors that were not loaded also differ one by one; this one says that it is all of them",
)
def loaded(audits: Audits, case: str) -> Finding:
    """Some tensor of each component of the model is like the checkpoint's: an exporter that finds none under the names that it looks for goes on with
    random weights, and a warning."""
    known = [r for name, records in audits.by_name.items() if component(name) == case for r in records]
    likeness = [record.likeness for record in known if record.likeness is not None]
    alike = sum(ALIKE.admits(value) for value in likeness)
    fields: Fields = {
        "measured": {"tensors": len(likeness), "alike": alike},
        "where": Where(method=case.partition(".")[0]),
    }
    if not likeness:
        return unverified(f"no tensor of {case} can be told from another: nothing was compared")
    if not alike:
        return failed(
            f"every tensor of {case} differs from the checkpoint: none of {len(likeness)} is like its own. The exporter did not load them: look for "
            "keys that it calls missing or unexpected, and compare their spelling with model.safetensors.",
            fields,
        )
    return passed(f"{alike} of {len(likeness)} tensors are like the checkpoint's", fields)


@check("weights.tensors", step="lowering", needs=audited, cases=per_parameter, limit=LIMITS_OF_TENSORS)
def tensors(audits: Audits, case: str) -> Finding:
    """The integers and scales of every parameter equal those that the recipe makes of the checkpoint's tensor."""
    method, module = case.partition(".")[0], module_of(case)
    records = audits.by_name.get(case, [])
    if not records:
        return _not_found(audits, method, module)
    worst = next((record for record in records if record.reason), records[0])
    where = Where(method=method, instruction=worst.instruction, module=module, index=worst.index)
    measured: dict[str, object] = {"wrong": worst.wrong, "sqnr_db": worst.sqnr_db, "worst_steps": worst.worst_steps}
    if worst.group is not None:
        measured["worst_group"] = list(worst.group)
    bound = STEPS if rounds_to_nearest(worst) else None
    allowed = {"wrong": 0} | ({"worst_steps": bound.value} if bound is not None else {})
    fields: Fields = {"measured": measured, "allowed": allowed, "where": where}
    if not worst.explained and audits.evidence.manifest is None:
        said = f"{module}: {worst.reason}; the file has no manifest, and its recipe is not understood"
        return unverified(said, measured=measured, where=where)
    if worst.reason:
        compare = "compare SHA-256 with the manifest, then export again" if audits.evidence.manifest else "export again"
        hint = f"The bytes changed after quantization, or came from other weights: {compare}."
        return failed(f"{module}: {worst.reason}. {hint}", fields)
    if bound is not None and worst.worst_steps is not None and not bound.admits(worst.worst_steps):
        said = f"{module}: element {list(worst.index or ())} is {worst.worst_steps:.3f} steps from the checkpoint, allowed {bound.value:g}"
        return failed(f"{said}. Rounding alone leaves half a step: check the quantizer.", fields)
    distance = "" if worst.sqnr_db is None else f", {worst.sqnr_db:.1f} dB from the checkpoint"
    noted = next((record.noted for record in records if record.noted), "equal to the recipe's result")
    return passed(f"{noted}{distance}", fields)


def _not_found(audits: Audits, method: str, module: str) -> Finding:
    candidates = [record for record in audits.strange if record.method == method]
    if candidates and audits.evidence.manifest is None:
        first = candidates[0]
        return unverified(
            f"{module} was not found, and {len(candidates)} constants of {method} have an unknown form, first {first.role} at "
            f"instruction {first.instruction} ({first.elements:,} elements): this exporter's layout of constants is not understood",
            where=Where(method=method, instruction=first.instruction, module=module),
        )
    return failed(
        f"{module}: no constant of the program holds this tensor. Was it dropped, or replaced by other weights? "
        "Export the checkpoint again and compare.",
        where=Where(method=method, module=module),
    )


def rounds_to_nearest(record: Audited) -> bool:
    """Whether the tensor is rounded to the nearest without clipping: linears and convolutions, unless by HQQ or by scales that nobody knows."""
    if record.noted:
        return False
    if record.quantizer:
        return record.role == "linear" and record.quantizer == "affine"
    return record.role == "convolution" or (record.role == "linear" and record.method == ENCODER)


@check("weights.derived", step="lowering", needs=audited, cases=one_case, limit="weights.derived.factor")
def derived(audits: Audits, _case: str) -> Finding:
    """The constants that no tensor of the checkpoint holds follow from its configuration: epsilons, RoPE tables, mean and std, QuickGELU's factor,
    scales, masks."""
    audit, evidence = audits.audit, audits.evidence
    records = [record for record in audit.constants if record.name not in evidence.subjects.parameters]
    wrong = [record for record in records if record.reason]
    measured = {"constants": len(records), "wrong": len(wrong)}
    if not records:
        return unverified("the program has no derived constants: nothing was compared")
    if wrong and evidence.manifest is None and not any(record.explained for record in wrong):
        first = wrong[0]
        where = Where(method=first.method, instruction=first.instruction, module=first.owner)
        said = f"{len(wrong)} constants are not understood, first {first.role} at instruction {first.instruction} of {first.method}: {first.reason}"
        return unverified(said, measured=measured, where=where)
    if wrong:
        first = next((record for record in wrong if record.explained), wrong[0])
        where = Where(method=first.method, instruction=first.instruction, module=first.owner, index=first.index)
        message = f"{first.owner}, {first.role} at instruction {first.instruction}: {first.reason}. Check config.json and the recipe."
        return failed(message, measured=measured, allowed={"wrong": 0}, where=where)
    dead = f"; {audit.dead_bytes:,} bytes of constants are read by no instruction" if audit.dead_bytes else ""
    message = f"{len(records)} constants follow from the configuration{dead}"
    return passed(message, measured=measured, allowed={"wrong": 0})


@check(
    "weights.placement",
    step="lowering",
    needs=audited,
    cases=one_case,
    overlap="swapped tensors are also unlike those that belong in their place; this one says that they are in the file",
)
def placement(audits: Audits, _case: str) -> Finding:
    """The program uses the tensors in the order of the computation: layer after layer, stage after stage."""
    audit = audits.audit
    if audit.misplaced:
        first = audit.misplaced[0]
        where = Where(method=first.method, instruction=first.instruction, module=first.expected)
        message = (
            f"{first.expected}: instruction {first.instruction} of {first.method} uses {first.found} in its place. "
            "Two tensors were swapped: check the key map of the export."
        )
        return failed(message, where=where)
    if not audit.held:
        return unverified("the program holds no tensor of the checkpoint: nothing was compared")
    message = f"{audit.held} tensors are in the order of the computation, {len(audit.unused)} tensors of the checkpoint unused by LLaVA-1.5"
    return passed(message)


CHECKS = (loaded, tensors, derived, placement)
