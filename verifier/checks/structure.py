"""`structure.*`: what the file declares. Nothing here runs the program, except to ask the runtime for its operators."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.artifact.program import MethodFacts, TensorFacts
from verifier.checks.bands import whole
from verifier.checks.check import Fields, Finding, check, failed, need, one_case, passed, skipped, unverified
from verifier.checks.metadata import metadata
from verifier.core.limits import limit, stated
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER, ROLES, most_tokens
from verifier.families.tokens.records import described
from verifier.measures.evidence import Evidence, Part

SCALAR = limit("structure.scalars")


def _same(actual: object, expected: TensorFacts, *, static: bool) -> bool:
    """Of a size that may be smaller, a file may say so or not, unless the convention needs it; `static` tensors need not either."""
    if not isinstance(actual, TensorFacts) or actual.dtype != expected.dtype or actual.sizes != expected.sizes:
        return False
    return actual.dynamic or static or not expected.dynamic


@check(
    "structure.signatures",
    step="lowering",
    needs=whole,
    cases=one_case,
    overlap="a program with another signature also fails in its calls; this one says which input or output is another",
)
def signatures(evidence: Evidence, _case: str) -> Finding:
    """The inputs and outputs of every method have the dtypes, sizes and dynamic sizes of the program's calling convention. A program that takes
    pictures of one size alone passes, and the message says so."""
    for name in ROLES:
        facts, expected = evidence.program.methods[name], evidence.expected_signatures[name]
        static = name == ENCODER
        pairs = [
            *zip(facts.inputs, expected.inputs, strict=False),
            *zip(facts.outputs, (expected.output,), strict=False),
        ]
        right = len(facts.inputs) == len(expected.inputs) and len(facts.outputs) == 1
        if not right or not all(_same(a, e, static=static) for a, e in pairs):
            shown = ", ".join(map(str, facts.inputs)), ", ".join(map(str, facts.outputs))
            return failed(
                f"{name} has another signature: ({shown[0]}) -> ({shown[1]}), expected {expected}. "
                "Export with this project's exporter, or fix the runner that was changed with it.",
                where=Where(method=name),
            )
    image = evidence.program.methods[ENCODER].inputs[0]
    promised = evidence.manifest is not None and evidence.manifest.recipe.static_image_shape
    assert isinstance(image, TensorFacts)
    if promised and image.dynamic:
        message = f"{ENCODER} takes pictures of many sizes ({image}), and the manifest says static_image_shape. Export again, or correct the manifest."
        return failed(message, where=Where(method=ENCODER))
    said = f"three methods with the signatures of {evidence.convention.name}"
    if promised or image.dynamic or not evidence.expected_signatures[ENCODER].inputs[0].dynamic:
        return passed(said)
    exception = f"{ENCODER} takes pictures of {image.sizes[2]} x {image.sizes[1]} px alone: an app pads its own to that size with black"
    return passed(f"{said}; {exception}", exception=exception)


@check(
    "structure.limits",
    step="lowering",
    needs=whole,
    cases=one_case,
    overlap="a wrong limit also shows as a chunk that is refused, or taken, at the end of the cache",
)
def limits(evidence: Evidence, _case: str) -> Finding:
    """`get_max_seq_len`, the bound of the decoder's input and the length of the KV-cache agree, and `token_embedding` takes as many tokens in one
    call as `text_decoder`. A bound that is off by one passes, and the message says so. Where the cache is longer than `max_position_embeddings` of
    config.json, the message says so, too."""
    limit = evidence.program.max_seq_len
    trained, held = evidence.geometry.text.max_positions, evidence.recipe.max_context_len
    declared = evidence.program.methods[DECODER].inputs[0]
    bound = declared.sizes[1] if isinstance(declared, TensorFacts) and len(declared.sizes) == 3 else None
    embedded = most_tokens(evidence.program.methods[EMBEDDING])
    fields: Fields = {
        "measured": {"get_max_seq_len": limit, "text_decoder bound": bound, "max_position_embeddings": trained},
        "where": Where(method=DECODER),
    }
    if bound is None or bound not in (limit - 1, limit, limit + 1):
        return failed(
            f"get_max_seq_len returns {limit}, but text_decoder takes at most {bound} tokens. Export again with one --max-seq-len.",
            fields,
        )
    cache = evidence.program.cache_positions
    if cache is not None and limit > cache:
        return failed(
            f"get_max_seq_len returns {limit}, but the KV-cache holds {cache} positions: a runner that goes so far gets an error. Export again with one "
            "--max-seq-len.",
            fields,
        )
    if embedded is None or embedded not in range(bound, 1 << 31):
        said = (
            f"token_embedding takes at most {embedded} tokens in one call, text_decoder {bound}: a longer text in one call ends in an error. A runner "
            f"must embed a text in pieces of {embedded} tokens, as this verification does; or export token_embedding with a dynamic length of {bound} "
            "(ExecuTorch's own exporter takes the length of its example prompt)."
        )
        both: Fields = {
            "measured": {"token_embedding bound": embedded},
            "allowed": {"token_embedding bound": bound},
            "where": Where(method=EMBEDDING),
        }
        return failed(said, both, accuses="convention")
    message, exception = (
        f"at most {limit} tokens by get_max_seq_len and by the decoder's bound",
        _off_by_one(limit, bound, held),
    )
    if exception:
        message = f"at most {limit} tokens by get_max_seq_len; {exception}"
    if held > trained:
        message += (
            f"; the KV-cache holds {held} positions, and the model was trained for {trained} (max_position_embeddings of config.json): answers "
            f"that go beyond position {trained} are not reliable. Export with --max-context-len {trained} at most, or cut "
            "conversations in the app"
        )
    return passed(message, fields, exception=exception)


def _off_by_one(limit: int, bound: int, held: int) -> str:
    """What an app has to know of a program whose limits differ by one, as those of optimum-executorch do."""
    if bound == limit - 1:
        return f"text_decoder takes at most {bound} tokens in one call: a prompt that fills all {limit} positions goes in in two calls"
    if held == limit + 1 or bound == limit + 1:
        return (
            f"the last of {limit + 1} positions of the KV-cache is never used, because runners stop at get_max_seq_len"
        )
    return ""


@check("structure.quantization", step="lowering", needs=whole, cases=one_case, optional=True)
def quantization(evidence: Evidence, _case: str) -> Finding:
    """Every int8 tensor that goes from one delegate to another is read with the scale and zero point that it was written with (ET#21773). A vision
    encoder that is not in static int8 has none."""
    found = evidence.program.handovers
    if isinstance(found, Missing):
        return unverified(f"a delegate cannot be read: {found.reason}")
    if not found.compared:
        if evidence.recipe.vision != "int8":
            return skipped("the vision encoder is not in static int8: no int8 tensor goes from one delegate to another")
        return unverified("no int8 tensor goes from one delegate to another: nothing was compared")
    if not found.misread:
        return passed(
            f"{found.compared} int8 tensors between delegates, each read with the scale and zero point it was written with"
        )
    first = found.misread[0]
    message = (
        f"{len(found.misread)} of {found.compared} int8 tensors between delegates are misread, first EValue {first.value} of {first.method}: "
        f"instruction {first.writer} writes it with {first.written}, instruction {first.reader} reads it with {first.read}. The "
        "serialization of quantization parameters is at fault: export again."
    )
    return failed(message, where=Where(method=first.method, instruction=first.reader))


@check("structure.scalars", step="lowering", needs=whole, cases=one_case, limit="structure.scalars", optional=True)
def scalars(evidence: Evidence, _case: str) -> Finding:
    """Queries and keys of the vision tower are each multiplied by head_dim^-1/4, as PyTorch decomposes attention, or the operator of attention is
    given head_dim^-1/2. A program whose delegates compute all of it has no such number: there the layers are compared.

    The number itself is compared: int8 noise hides a scale that is slightly wrong from every calibrated band.
    """
    geometry, found = evidence.geometry.vision, evidence.program.vision_factors
    head = geometry.width / geometry.heads
    wrong = [
        factor
        for factor in found
        if not (isinstance(factor.value, float) and SCALAR.admits(abs(factor.value / head**factor.exponent - 1)))
    ]
    if not found:
        return skipped("no instruction of the vision tower multiplies by a scalar")
    if wrong:
        first = wrong[0]
        message = (
            f"{len(wrong)} of {len(found)} scalar factors of the vision tower are wrong, first at instruction {first.instruction}: {first.value}, expected "
            f"head_dim^{'-1/4' if first.exponent == -0.25 else '-1/2'} = {head**first.exponent:.9g}. The attention scale changed during export: export again."
        )
        return failed(message, where=Where(method=ENCODER, instruction=first.instruction))
    roots = " and ".join(sorted({"head_dim^-1/4" if one.exponent == -0.25 else "head_dim^-1/2" for one in found}))
    return passed(f"{len(found)} scalar factors of the vision tower, all {roots}")


@dataclass(frozen=True)
class OperatorsOf:
    """Operators that a runtime has kernels for, and the methods that need some."""

    available: frozenset[str]
    methods: dict[str, MethodFacts]


@need(Part.RUNTIME)
def runtime_itself(evidence: Evidence) -> OperatorsOf | Missing:
    """What the runtime that ran the program says it can do."""
    ran = evidence.runtime.conversations
    if isinstance(ran, Missing):
        return ran
    if not ran.operators:
        return Missing("the runtime did not list its operators; see why its run failed", "verifier")
    return OperatorsOf(frozenset(ran.operators), evidence.program.methods)


@check(
    "structure.operators",
    step="lowering",
    needs=runtime_itself,
    cases=one_case,
    overlap="every operator of the bench's programs has a kernel in the wheel; tests take one away",
)
def operators(ran: OperatorsOf, _case: str) -> Finding:
    """The runtime that runs the program has a kernel for each of its operators."""
    for name, facts in ran.methods.items():
        missing = sorted(set(facts.operators) - ran.available)
        if missing:
            return failed(
                f"{name} needs {len(missing)} operators that this runtime lacks: {', '.join(missing[:5])}. Link their kernel library into the runner.",
                where=Where(method=name),
            )
    count = len({op for facts in ran.methods.values() for op in facts.operators})
    return passed(f"all {count} operators have kernels", measured={"operators": count})


@check(
    "structure.delegation",
    step="lowering",
    needs=whole,
    cases=one_case,
    overlap="an operator that is not delegated also changes the census, where there is a clean export to compare with; this check needs none",
)
def delegation(evidence: Evidence, _case: str) -> Finding:
    """All matrix products and convolutions run in XNNPACK."""
    for name, facts in evidence.program.methods.items():
        heavy = {op: n for op, n in facts.operators.items() if op in evidence.program.heavy}
        if heavy:
            return failed(
                f"{name} runs {sum(heavy.values())} matrix products outside XNNPACK ({', '.join(heavy)}). The partitioner did not take them: check the "
                "recipe's quantization and the partitioner list.",
                measured=heavy,
                where=Where(method=name),
            )
    delegates = sum(sum(facts.delegates.values()) for facts in evidence.program.methods.values())
    if not delegates:
        return unverified("the program calls no delegate: nothing was compared")
    return passed(f"no matrix product outside {delegates} delegates", measured={"delegates": delegates})


@check("structure.census", step="lowering", needs=whole, cases=one_case, optional=True)
def census(evidence: Evidence, _case: str) -> Finding:
    """The numbers of instructions, of nodes inside delegates and of their clamps, by kind, equal those of the calibrated export, if the recipe was
    calibrated."""
    if isinstance(evidence.tolerances, Missing):
        return skipped(f"no census to compare with: {evidence.tolerances.reason}")
    found = evidence.program.census
    if isinstance(found, Missing):
        return unverified(f"a delegate cannot be read: {found.reason}")
    return _compare_census(found, evidence.tolerances.census)


def _compare_census(actual: dict[str, dict[str, int]], expected: dict[str, dict[str, int]]) -> Finding:
    changes = [
        f"{method} {op}: {actual.get(method, {}).get(op, 0)}, expected {expected.get(method, {}).get(op, 0)}"
        for method in sorted(actual.keys() | expected.keys())
        for op in sorted(actual.get(method, {}).keys() | expected.get(method, {}).keys())
        if actual.get(method, {}).get(op, 0) != expected.get(method, {}).get(op, 0)
    ]
    if changes:
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        return failed(
            f"the instructions differ from a clean export's: {'; '.join(changes[:4])}{more}. Compare versions and recipe in the manifest.",
            measured=actual,
            allowed=expected,
            where=Where(method=changes[0].split()[0]),
        )
    return passed("the numbers of instructions equal the calibrated ones", measured=actual)


@check(
    "structure.memory",
    step="lowering",
    needs=whole,
    cases=one_case,
    overlap="it finds what a plan asks for before anything runs; a wrong plan of the bench also has tensors that overlap",
)
def memory(evidence: Evidence, _case: str) -> Finding:
    """The decoder's arena is at least as large as its KV-cache: 2 x layers x length x kv_heads x head_dim x 4 bytes."""
    text = evidence.geometry.text
    length = evidence.recipe.max_context_len
    cache_bytes = text.cache_bytes(length)
    planned = evidence.program.methods[DECODER].planned_bytes
    fields: Fields = {
        "measured": {"planned_bytes": planned},
        "allowed": {"planned_bytes": cache_bytes},
        "where": Where(method=DECODER),
    }
    if not stated("structure.memory", cache_bytes, "bytes", "least").admits(planned):
        return failed(
            f"text_decoder plans {planned} bytes, less than its KV-cache of {cache_bytes}: the cache is missing or smaller. Export again.",
            fields,
        )
    return passed(f"{planned / 1e6:.1f} MB planned, {cache_bytes / 1e6:.1f} MB of it KV-cache", fields)


@check(
    "structure.manifest",
    step="lowering",
    needs=whole,
    cases=one_case,
    optional=True,
    overlap="another file than the manifest's also has other bytes in it; this one says it without a checkpoint",
)
def manifest(evidence: Evidence, _case: str) -> Finding:
    """The SHA-256 of the file is the one in its manifest."""
    made = evidence.manifest
    if made is None:
        return skipped("no manifest beside the file: its recipe is inferred, its origin unknown")
    actual = evidence.program.sha256
    fields: Fields = {"measured": {"sha256": actual}, "allowed": {"sha256": made.pte_sha256}}
    if actual != made.pte_sha256:
        return failed(
            "the bytes are not those that were exported: SHA-256 differs from the manifest's. Copy the file again, or export again.",
            fields,
        )
    said, rule = "SHA-256 as in the manifest", evidence.tokens.rule
    if made.prompt_rule is not None and not rule.same_prompt(made.prompt_rule):
        said += f"; it was exported with another tokenizer: then {described(made.prompt_rule)}, now {described(rule.as_json())}"
    return passed(said, fields)


@check(
    "structure.lifetimes",
    step="lowering",
    needs=whole,
    cases=one_case,
    overlap="tensors that overlap also give wrong numbers in the calls that meet both; this one needs no call",
)
def lifetimes(evidence: Evidence, _case: str) -> Finding:
    """No two tensors that live at the same time share memory, and no tensor ends outside its arena.

    Source: ET#12182, where the lifetime of a cache ended early.
    """
    planned = 0
    for method in ROLES:
        found = evidence.program.memory[method]
        planned += len(found.tensors)
        if found.outside is not None:
            first = found.outside
            where = Where(method=method, instruction=max(first.first, 0), index=(first.value,))
            message = f"{method}: EValue {first.value} ends at byte {first.end:,} of arena {first.arena}, which has {found.arenas_bytes}. Export again."
            return failed(message, where=where)
        if found.overlap is not None:
            one, other = found.overlap.first, found.overlap.second
            where = Where(method=method, instruction=max(one.first, other.first), index=(one.value, other.value))
            kind = "a cache" if one.permanent or other.permanent else "a tensor"
            message = (
                f"{method}: EValues {one.value} and {other.value} share bytes {max(one.begin, other.begin):,} to "
                f"{min(one.end, other.end):,} of arena {one.arena} while both are in use (instructions {one.first}..{one.last} and "
                f"{other.first}..{other.last}): {kind} will be overwritten. Check the memory planning pass."
            )
            return failed(message, measured={"overlaps": found.overlaps}, allowed={"overlaps": 0}, where=where)
    if not planned:
        return unverified("the program plans no memory: nothing was compared")
    return passed(
        f"{planned} tensors, none overwritten while in use",
        measured={"overlaps": 0},
        allowed={"overlaps": 0},
    )


CHECKS = (signatures, limits, metadata, quantization, scalars, operators, delegation, memory, lifetimes)
"""`census` and `manifest` stand further down in the registry."""
