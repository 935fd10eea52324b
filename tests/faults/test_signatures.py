"""What methods declare: a wrong signature fails, and so does one limit of other exporters; what an app can live with is said and passes."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.faults.judging import results_of
from tests.support import OPTIMUM_PTE
from verifier.artifact.program import MethodFacts, TensorFacts, open_artifact
from verifier.audit.records import Handovers
from verifier.core.types import CheckResult
from verifier.measures.evidence import Evidence
from verifier.measures.program_facts import program_facts
from verifier.report.headline import headline

EMBEDS_84 = {"token_embedding": ((TensorFacts("LONG", (1, 84), True),), (TensorFacts("FLOAT", (1, 84, 256), True),))}
DECODES_767 = {
    "token_embedding": ((TensorFacts("LONG", (1, 767), True),), (TensorFacts("FLOAT", (1, 767, 256), True),)),
    "text_decoder": (
        (TensorFacts("FLOAT", (1, 767, 256), True), TensorFacts("LONG", (1,), False)),
        (TensorFacts("FLOAT", (1, 1088), False),),
    ),
}


def _judged(evidence: Evidence, check: str, changes: dict[str, tuple[Any, Any]]) -> CheckResult:
    methods = evidence.program.methods
    changed = {name: replace(methods[name], inputs=i, outputs=o) for name, (i, o) in changes.items()}
    (result,) = results_of(check, replace(evidence, program=replace(evidence.program, methods=methods | changed)))
    return result


def test_an_embedding_of_84_tokens_is_named_with_what_to_do(gathered: Evidence) -> None:
    """One check, whose failure accuses no number of the file."""
    result = _judged(gathered, "structure.limits", EMBEDS_84)
    assert result.verdict == "fail"
    assert "token_embedding takes at most 84 tokens in one call, text_decoder 768" in result.message
    assert "in pieces of 84 tokens" in result.message
    assert "dynamic length of 768" in result.message
    assert (result.measured, result.allowed) == ({"token_embedding bound": 84}, {"token_embedding bound": 768})
    assert "do not take and return what runners rely on" in headline([asdict(result)])


def test_a_bound_that_is_one_less_is_said_and_passes(gathered: Evidence) -> None:
    """As optimum-executorch has it: 768 positions, 767 tokens in a call."""
    result = _judged(gathered, "structure.limits", DECODES_767)
    assert result.verdict == "pass"
    assert "at most 767 tokens in one call" in result.exception


def test_a_cache_that_is_one_longer_is_said_and_passes(gathered: Evidence) -> None:
    """`get_max_seq_len` is one less than the cache."""
    longer = replace(gathered, recipe=replace(gathered.recipe, max_context_len=769))
    result = _judged(longer, "structure.limits", {})
    assert result.verdict == "pass"
    assert "the last of 769 positions" in result.exception
    assert _judged(gathered, "structure.limits", {}).exception == ""


@pytest.mark.parametrize(("held", "verdict"), [(767, "fail"), (768, "pass"), (769, "pass"), (None, "pass")])
def test_a_promise_of_one_position_more_than_the_cache_fails(
    gathered: Evidence, held: int | None, verdict: str
) -> None:
    """By the caches of the file, whatever the decoder's bound is; caches that nobody can read decide nothing."""
    program = replace(gathered.program, cache_positions=held)
    (result,) = results_of("structure.limits", replace(gathered, program=program))
    assert result.verdict == verdict
    assert (f"the KV-cache holds {held} positions" in result.message) == (verdict == "fail")


@pytest.mark.parametrize("bound", [512, 766, 770])
def test_another_bound_fails(gathered: Evidence, bound: int) -> None:
    """By more than one."""
    decoder = ((TensorFacts("FLOAT", (1, bound, 256), True), TensorFacts("LONG", (1,), False)), ())
    assert _judged(gathered, "structure.limits", {"text_decoder": decoder}).verdict == "fail"


def test_pictures_of_one_size_are_said_and_pass(gathered: Evidence) -> None:
    """A manifest that says so needs no words; one that says so of a program of many sizes is wrong."""
    tokens = (TensorFacts("FLOAT", (1, 576, 256), False),)
    static = {"vision_encoder": ((TensorFacts("BYTE", (3, 336, 336), False),), tokens)}
    result = _judged(replace(gathered, manifest=None), "structure.signatures", static)
    assert (result.verdict, "336 x 336 px alone" in result.exception) == ("pass", True)
    assert gathered.manifest is not None
    recipe = replace(gathered.manifest.recipe, static_image_shape=True)
    promised = replace(gathered, manifest=replace(gathered.manifest, recipe=recipe))
    assert _judged(promised, "structure.signatures", static).exception == ""
    assert _judged(promised, "structure.signatures", {}).verdict == "fail"


@pytest.mark.parametrize(
    ("role", "inputs", "output"),
    [
        ("vision_encoder", (TensorFacts("BYTE", (3, 336, 336), True),), TensorFacts("FLOAT", (1, 577, 256), False)),
        ("vision_encoder", (TensorFacts("BYTE", (3, 224, 224), True),), TensorFacts("FLOAT", (1, 576, 256), False)),
        ("token_embedding", (TensorFacts("LONG", (1, 768), False),), TensorFacts("FLOAT", (1, 768, 256), True)),
        ("token_embedding", (TensorFacts("LONG", (1, 768), True),), TensorFacts("HALF", (1, 768, 256), True)),
    ],
)
def test_a_wrong_signature_fails(gathered: Evidence, role: str, inputs: Any, output: Any) -> None:
    """Another number of image tokens, another frame, one length of text alone, half precision."""
    result = _judged(gathered, "structure.signatures", {role: (inputs, (output,))})
    assert (result.verdict, result.where is not None and result.where.method) == ("fail", role)


FOREIGN = {"get_eos_id": 2, "get_n_layers": 4, "get_n_kv_heads": 4, "get_head_dim": 64.0, "vision_token_id": 1024}


def _metadata(evidence: Evidence, **changes: object) -> CheckResult:
    """Of a file with the names of optimum-executorch."""
    absent = ("get_eos_ids", "get_max_context_len")
    methods = {name: facts for name, facts in evidence.program.methods.items() if name not in absent}
    for name, value in (FOREIGN | changes).items():
        methods[name] = MethodFacts(name, (), (value,), {}, {}, 0)  # type: ignore[arg-type]
    program = replace(evidence.program, methods=methods)
    (result,) = results_of("structure.metadata", replace(evidence, program=program))
    return result


def test_metadata_of_another_exporter_passes(gathered: Evidence) -> None:
    """What its names say is right; what a runner assumes for those that it lacks is said."""
    result = _metadata(gathered)
    assert result.verdict == "pass"
    assert "get_eos_ids is missing" in result.message
    assert "vision_token_id" in result.measured


@pytest.mark.parametrize(("name", "value"), [("get_eos_id", 13), ("get_n_layers", 5), ("vision_token_id", 7)])
def test_wrong_metadata_of_another_exporter_fails(gathered: Evidence, name: str, value: int) -> None:
    """By its name."""
    result = _metadata(gathered, **{name: value})
    assert result.verdict == "fail"
    assert f"{name} returns {value}, expected" in result.message


@pytest.mark.parametrize(("change", "verdict"), [(1.0, "pass"), (1.001, "fail"), (math.nan, "fail")])
def test_the_scale_of_an_attention_operator_is_compared(gathered: Evidence, change: float, verdict: str) -> None:
    """optimum-executorch's tower hands head_dim^-1/2 to the operator."""
    artifact = open_artifact(OPTIMUM_PTE)
    plan = artifact.plans["vision_encoder"]
    step = next(step for step in plan.instructions if step.name == "llama::custom_sdpa.out")
    values = list(plan.values)
    scale = values[step.args[7]]
    assert isinstance(scale, float)
    values[step.args[7]] = scale * change
    plans = artifact.plans | {"vision_encoder": replace(plan, values=tuple(values))}
    program = program_facts(replace(artifact, plans=plans))
    (result,) = results_of("structure.scalars", replace(gathered, program=program))
    assert result.verdict == verdict
    assert "head_dim^-1/2" in result.message


def test_a_tower_that_multiplies_by_no_scalar_is_skipped(gathered: Evidence) -> None:
    """Its delegates compute all of the attention."""
    (result,) = results_of("structure.scalars", replace(gathered, program=replace(gathered.program, vision_factors=())))
    assert result.verdict == "skipped"


def test_a_tower_that_is_not_quantized_has_no_int8_handovers(gathered: Evidence) -> None:
    """One whose recipe is int8 and that has none was not compared."""
    none = replace(gathered.program, handovers=Handovers(0, ()))
    for vision, verdict in (("fp32", "skipped"), ("int8", "error")):
        recipe = replace(gathered.recipe, vision=vision)
        (result,) = results_of("structure.quantization", replace(gathered, program=none, recipe=recipe))
        assert result.verdict == verdict
