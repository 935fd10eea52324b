"""`structure.*`: what the file declares. Nothing here runs the program, except to ask the runtime for its operators."""

from __future__ import annotations

from verifier.artifact.program import MethodFacts, TensorFacts
from verifier.audit.handover import handovers
from verifier.backends.calls import census_of
from verifier.checks.common import Check, one_case
from verifier.checks.metadata import metadata
from verifier.core.limits import limit, stated
from verifier.errors import ArtifactError, GoldenError
from verifier.evidence import Evidence
from verifier.model.tokenizer import described
from verifier.operators.registry import is_heavy
from verifier.types import CheckResult, Where

SCALAR = limit("structure.scalars")


def _expected_signature(evidence: Evidence, name: str) -> tuple[tuple[TensorFacts, ...], TensorFacts]:
    """Inputs and output that a runner relies on, at their upper bounds."""
    geometry = evidence.checkpoint.geometry
    side, width, vocabulary = geometry.vision.image_px, geometry.text.width, geometry.text.vocabulary
    longest = evidence.artifact.max_seq_len
    return {
        "vision_encoder": (
            (TensorFacts("BYTE", (3, side, side), True),),
            TensorFacts("FLOAT", (1, geometry.vision.patches, width), False),
        ),
        "token_embedding": (
            (TensorFacts("LONG", (1, longest), True),),
            TensorFacts("FLOAT", (1, longest, width), True),
        ),
        "text_decoder": (
            (TensorFacts("FLOAT", (1, longest, width), True), TensorFacts("LONG", (1,), False)),
            TensorFacts("FLOAT", (1, vocabulary), False),
        ),
    }[name]


def _same(actual: object, expected: TensorFacts, *, static: bool) -> bool:
    if not isinstance(actual, TensorFacts) or actual.dtype != expected.dtype or actual.sizes != expected.sizes:
        return False
    return actual.dynamic == (expected.dynamic and not static) or (not expected.dynamic)


def signatures(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Methods take and give the dtypes, sizes and dynamic bounds that runners rely on."""
    static_image = evidence.manifest is not None and evidence.manifest.recipe.static_image_shape
    for name in ("vision_encoder", "token_embedding", "text_decoder"):
        facts: MethodFacts = evidence.artifact.methods[name]
        inputs, output = _expected_signature(evidence, name)
        static = static_image and name == "vision_encoder"
        pairs = [*zip(facts.inputs, inputs, strict=False), *zip(facts.outputs, (output,), strict=False)]
        right = len(facts.inputs) == len(inputs) and len(facts.outputs) == 1
        if not right or not all(_same(a, e, static=static) for a, e in pairs):
            shown = ", ".join(map(str, facts.inputs)), ", ".join(map(str, facts.outputs))
            return [
                check.failed(
                    "program",
                    f"{name} has another signature: ({shown[0]}) -> ({shown[1]}), expected ({', '.join(map(str, inputs))}) -> ({output}). "
                    "Export with this project's exporter, or fix the runner that was changed with it.",
                    where=Where(method=name),
                )
            ]
    return [check.passed("program", "three methods with the signatures that runners rely on")]


def limits(check: Check, evidence: Evidence) -> list[CheckResult]:
    """`get_max_seq_len`, the decoder's bound and the cache agree; where the cache is longer than the positions that the model was trained
    for (`max_position_embeddings`), the message says so."""
    limit = evidence.artifact.max_seq_len
    trained, held = evidence.checkpoint.geometry.text.max_positions, evidence.recipe.max_context_len
    declared = evidence.artifact.methods["text_decoder"].inputs[0]
    bound = declared.sizes[1] if isinstance(declared, TensorFacts) and len(declared.sizes) == 3 else None
    fields = {
        "measured": {"get_max_seq_len": limit, "text_decoder bound": bound, "max_position_embeddings": trained},
        "where": Where(method="text_decoder"),
    }
    if bound != limit:
        return [
            check.failed(
                "program",
                f"get_max_seq_len says {limit}, text_decoder takes up to {bound} tokens. Export again with one --max-seq-len.",
                **fields,
            )
        ]
    message = f"at most {limit} tokens by get_max_seq_len and by the decoder's bound"
    if held > trained:
        message += (
            f"; the KV-cache holds {held} positions, and the model was trained for {trained} (max_position_embeddings of config.json): answers "
            f"that go on behind position {trained} are those of an untrained model. Export with --max-context-len {trained} at most, or cut "
            "conversations in the app"
        )
    return [check.passed("program", message, **fields)]


def quantization(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every int8 tensor between two delegates is read with the scale and zero point that it was written with (ET#21773)."""
    try:
        found = handovers(evidence.artifact)
    except ArtifactError as error:
        return [check.failed("program", f"a delegate cannot be read: {error.one_line}")]
    if not found.compared:
        return [check.error("program", "no int8 tensor goes from one delegate to another: nothing was compared")]
    if not found.misread:
        return [
            check.passed("program", f"{found.compared} int8 tensors between delegates, each read as it was written")
        ]
    first = found.misread[0]
    message = (
        f"{len(found.misread)} of {found.compared} int8 tensors between delegates are misread, first EValue {first.value} of {first.method}: "
        f"instruction {first.writer} writes it with {first.written}, instruction {first.reader} reads it with {first.read}. The "
        "serialization of quantization parameters is at fault: export again."
    )
    return [check.failed("program", message, where=Where(method=first.method, instruction=first.reader))]


def scalars(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The vision tower's attention scale: queries and keys are each multiplied by head_dim^-1/4, as PyTorch decomposes attention.

    int8 hides a scale that is a little off from every band, so the number itself is looked at.
    """
    geometry, plan = evidence.checkpoint.geometry.vision, evidence.artifact.plans["vision_encoder"]
    expected = (geometry.width / geometry.heads) ** -0.25
    found = [
        (step.index, plan.values[step.args[1]])
        for step in plan.instructions
        if step.name == "aten::mul.Scalar_out" and len(step.args) > 1
    ]
    wrong = [(at, x) for at, x in found if not (isinstance(x, float) and SCALAR.admits(abs(x / expected - 1)))]
    if not found:
        return [check.error("program", "the vision tower multiplies by no scalar: nothing was compared")]
    if wrong:
        at, value = wrong[0]
        message = (
            f"{len(wrong)} of {len(found)} scalar factors of the vision tower are wrong, first at instruction {at}: {value}, expected "
            f"head_dim^-1/4 = {expected:.9g}. The attention scale was changed on the way: export again."
        )
        return [check.failed("program", message, where=Where(method="vision_encoder", instruction=at))]
    return [check.passed("program", f"{len(found)} scalar factors of the vision tower, all head_dim^-1/4")]


def operators(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Every operator of the program has a kernel in the runtime that runs it."""
    available = set(evidence.runtime.conversations.operators)
    if not available:
        return [check.error("program", "the runtime did not say which operators it has; see the runtime's own failure")]
    for name, facts in evidence.artifact.methods.items():
        missing = sorted(set(facts.operators) - available)
        if missing:
            return [
                check.failed(
                    "program",
                    f"{name} needs {len(missing)} operators that this runtime lacks: {', '.join(missing[:5])}. Link their kernel library into the runner.",
                    where=Where(method=name),
                )
            ]
    count = len({op for facts in evidence.artifact.methods.values() for op in facts.operators})
    return [check.passed("program", f"all {count} operators have kernels", measured={"operators": count})]


def delegation(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Matrix products and convolutions run in XNNPACK."""
    for name, facts in evidence.artifact.methods.items():
        heavy = {op: n for op, n in facts.operators.items() if is_heavy(op)}
        if heavy:
            return [
                check.failed(
                    "program",
                    f"{name} runs {sum(heavy.values())} matrix products outside XNNPACK ({', '.join(heavy)}). The partitioner did not take them: check the "
                    "recipe's quantization and the partitioner list.",
                    measured=heavy,
                    where=Where(method=name),
                )
            ]
    delegates = sum(sum(facts.delegates.values()) for facts in evidence.artifact.methods.values())
    if not delegates:
        return [check.error("program", "the program calls no delegate: nothing was looked at")]
    return [
        check.passed("program", f"no matrix product outside {delegates} delegates", measured={"delegates": delegates})
    ]


def census(check: Check, evidence: Evidence) -> list[CheckResult]:
    """Instructions, nodes inside delegates and their clamps are as many of each kind as in the calibrated export."""
    if isinstance(evidence.tolerances, GoldenError):
        return [check.error("program", f"no census to compare with: {evidence.tolerances.what}")]
    try:
        found = census_of(evidence.artifact)
    except ArtifactError as error:
        return [check.failed("program", f"a delegate cannot be read: {error.one_line}")]
    return [_compare_census(check, found, evidence.tolerances.census)]


def _compare_census(
    check: Check, actual: dict[str, dict[str, int]], expected: dict[str, dict[str, int]]
) -> CheckResult:
    changes = [
        f"{method} {op}: {actual.get(method, {}).get(op, 0)}, expected {expected.get(method, {}).get(op, 0)}"
        for method in sorted(actual.keys() | expected.keys())
        for op in sorted(actual.get(method, {}).keys() | expected.get(method, {}).keys())
        if actual.get(method, {}).get(op, 0) != expected.get(method, {}).get(op, 0)
    ]
    if changes:
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        return check.failed(
            "program",
            f"the instructions are not those of a clean export: {'; '.join(changes[:4])}{more}. Compare versions and recipe in the manifest.",
            measured=actual,
            allowed=expected,
            where=Where(method=changes[0].split()[0]),
        )
    return check.passed("program", "instruction census as calibrated", measured=actual)


def memory(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The decoder's arena holds at least its KV-cache: 2 x layers x length x kv_heads x head_dim x 4 bytes."""
    text = evidence.checkpoint.geometry.text
    length = evidence.recipe.max_context_len
    cache_bytes = 2 * text.layers * length * text.kv_heads * text.head_dim * 4
    planned = evidence.artifact.methods["text_decoder"].planned_bytes
    fields = {
        "measured": {"planned_bytes": planned},
        "allowed": {"planned_bytes": cache_bytes},
        "where": Where(method="text_decoder"),
    }
    if not stated(check.id, cache_bytes, "bytes", "least").admits(planned):
        return [
            check.failed(
                "program",
                f"text_decoder plans {planned} bytes, less than its KV-cache of {cache_bytes}: the cache is missing or smaller. Export again.",
                **fields,
            )
        ]
    return [
        check.passed("program", f"{planned / 1e6:.1f} MB planned, {cache_bytes / 1e6:.1f} MB of it KV-cache", **fields)
    ]


def manifest(check: Check, evidence: Evidence) -> list[CheckResult]:
    """The file is the one its manifest describes."""
    made = evidence.manifest
    if made is None:
        return [
            CheckResult(
                check.id,
                check.step,
                "program",
                "skipped",
                "no manifest beside the file: its recipe is inferred, its origin unknown",
            )
        ]
    actual = evidence.artifact.sha256
    fields = {"measured": {"sha256": actual}, "allowed": {"sha256": made.pte_sha256}}
    if actual != made.pte_sha256:
        return [
            check.failed(
                "program",
                "the bytes are not those that were exported: SHA-256 differs from the manifest's. Copy the file again, or export again.",
                **fields,
            )
        ]
    said, rule = "SHA-256 as in the manifest", evidence.tokenizer.rule
    if made.prompt_rule is not None and not rule.same_prompt(made.prompt_rule):
        said += f"; exported beside another tokenizer: there {described(made.prompt_rule)}, here {described(rule.as_json())}"
    return [check.passed("program", said, **fields)]


CENSUS = Check("structure.census", "lowering", one_case, census)
MANIFEST = Check("structure.manifest", "lowering", one_case, manifest)
CHECKS = (
    Check("structure.signatures", "lowering", one_case, signatures),
    Check("structure.limits", "lowering", one_case, limits),
    Check("structure.metadata", "lowering", one_case, metadata),
    Check("structure.quantization", "lowering", one_case, quantization),
    Check("structure.scalars", "lowering", one_case, scalars),
    Check("structure.operators", "lowering", one_case, operators),
    Check("structure.delegation", "lowering", one_case, delegation),
    Check("structure.memory", "lowering", one_case, memory),
)
