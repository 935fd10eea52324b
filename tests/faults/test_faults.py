"""Real faults, one at a time, through the public command or its core: exit status 1, and the right words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.faults.judging import results_of
from tests.support import EMBEDDED_PTE, FEW_IMAGES, verify
from verifier.artifact.program import open_artifact
from verifier.audit.recipe import quantized_embedding
from verifier.checks.blocks import PROFILE, VISION
from verifier.checks.check import Check, run_checks
from verifier.checks.metadata import FALLBACKS
from verifier.checks.registry import CHECKS
from verifier.core.types import EMBEDDING_GROUP, CheckResult, Missing, Recipe
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.definition import embedding_table
from verifier.families.llava.keymap import map_keys
from verifier.families.pixels.processor import find_processor
from verifier.families.registry import open_checkpoint
from verifier.families.samples import LayerPair
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.surgery import change_bytes, find_constants
from verifier.gather.opening import Request
from verifier.ladder.evidence import BlockError, LayerEvidence
from verifier.ladder.records import RangeUse, Replay
from verifier.measures import evidence
from verifier.measures.mapping import layer_errors
from verifier.measures.program_facts import program_facts
from verifier.measures.tokens import measure_metadata
from verifier.measures.vocabulary import in_steps, measure_vocabulary
from verifier.pipeline import verify as run_gate

pytestmark = pytest.mark.xdist_group("faults")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """The embedded program without its manifest: only numerics can give a fault away."""
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "llava.pte"))


def _flip(path: Path, needle: bytes, offset: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    at = data.find(needle)
    assert at >= 0, "the constant is not in the file"
    assert data.find(needle, at + 1) < 0, "the constant is not unique"
    data[at + offset] ^= mask
    path.write_bytes(bytes(data))


def _first_failure(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_flipped_sign_in_the_final_norm_is_found(bare: Path, tmp_path: Path) -> None:
    """One bit of one of 256 weights, without a manifest: the channel is named."""
    checkpoint = open_checkpoint()
    key = map_keys(checkpoint.keys, checkpoint.geometry).text["norm.weight"]
    weight = checkpoint.tensor(key).to(torch.float32)
    _flip(bare, weight.numpy().tobytes(), 4 * 100 + 3, 0x80)
    assert verify(bare, "--checks", "logits.*", "--json", str(tmp_path / "r.json")) == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["blame"]["check"].startswith("logits.")
    (channels,) = (check for check in report["checks"] if check["id"] == "logits.channels")
    assert "Channel 100 has gain -" in channels["message"]


def test_flipped_byte_is_found_by_the_manifest(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bit of the last constant: SHA-256 differs, exit status 1."""
    shutil.copy(EMBEDDED_PTE.with_name("llava_tiny.manifest.json"), bare.with_name("llava.manifest.json"))
    data = bytearray(bare.read_bytes())
    data[-100] ^= 1
    bare.write_bytes(bytes(data))
    assert verify(bare, "--checks", "structure.*") == 1
    assert "SHA-256 differs" in _first_failure(capsys)


def test_model_of_another_seed_fails(bare: Path, tmp_path: Path) -> None:
    """Every decoder linear is shuffled and it still claims to be llava_tiny: the numerics alone say no, and blame the decoder."""
    constants = find_constants(bare, open_checkpoint())
    for name, constant in constants.items():
        if name.startswith("text_decoder.layers") and constant.role == "linear":
            assert constant.value.constant is not None
            order = np.random.default_rng(1).permutation(constant.shape[0])
            change_bytes(bare, constant.value.constant, lambda raw, o=order: raw.reshape(len(o), -1)[o])
    words = ("--checks", "vision.*,embedding.*,logits.*,greedy.*", "--images", FEW_IMAGES)
    assert verify(bare, *words, "--json", str(tmp_path / "r.json")) == 1
    assert json.loads((tmp_path / "r.json").read_text())["blame"]["method"] == "text_decoder"


def test_model_of_another_checkpoint_is_refused(micro_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its manifest says so: nothing needs to run."""
    assert verify(micro_model / "model.pte") == 2
    assert "not the one that the artifact was made from" in capsys.readouterr().err


def test_crash_of_the_program_is_a_verdict(monkeypatch: pytest.MonkeyPatch, bare: Path) -> None:
    """A child that dies in the vision encoder: failed checks that say so, not a dead test run."""
    data = bytearray(bare.read_bytes())
    header = int.from_bytes(data[16:24], "little")
    assert header > 0
    monkeypatch.setattr("verifier.runner.local.LocalRunner.run", _dying_run)
    run = run_gate(Request(bare, checks=("vision.embedding", "greedy.golden")))
    assert run.judgement.exit_status == 1
    assert all("killed by SIGABRT" in r.message for r in run.results)


def _dying_run(self: object, bundle: object, *, timeout_s: float) -> object:
    from verifier.runner.protocol import Result

    return Result("crashed", "in call 0 (vision_encoder): killed by SIGABRT: boom")


def _verdicts(check_id: str, broken: evidence.Evidence) -> set[str]:
    return {result.verdict for result in results_of(check_id, broken)}


def _with_case(broken: evidence.Evidence, **fields: object) -> evidence.Evidence:
    return replace(broken, cases=(replace(broken.cases[0], **fields), *broken.cases[1:]))


def test_every_numeric_check_passes_on_the_clean_evidence(gathered: evidence.Evidence) -> None:
    """The clean side of the negative tests below."""
    ids = (
        "vision.embedding",
        "vision.channels",
        "embedding.tokens",
        "logits.teacher_forced",
        "logits.distribution",
        "logits.channels",
    )
    assert {check_id: _verdicts(check_id, gathered) for check_id in ids} == {check_id: {"pass"} for check_id in ids}
    assert _verdicts("mapping.activations", gathered) == _verdicts("greedy.golden", gathered) == {"pass"}


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_one_non_finite_value_fails(gathered: evidence.Evidence, poison: float) -> None:
    """NaN is never compared away."""
    vision, logits = np.array(gathered.cases[0].vision), np.array(gathered.cases[0].logits)
    vision[5, 7] = logits[2, 9] = poison
    broken = _with_case(gathered, vision=vision, logits=logits)
    for check_id in ("vision.embedding", "logits.teacher_forced", "greedy.golden"):
        assert "fail" in _verdicts(check_id, broken)


def test_embeddings_of_another_image_fail(gathered: evidence.Evidence) -> None:
    """The previous image's embedding reused."""
    assert "fail" in _verdicts("vision.embedding", _with_case(gathered, vision=gathered.cases[1].vision))


def test_dropped_projector_bias_fails(gathered: evidence.Evidence) -> None:
    """One channel without its bias, half a standard deviation, on every image (ET#9472)."""
    spread = np.concatenate([c.expected.vision for c in gathered.cases])[:, 40].std()
    cases = []
    for case in gathered.cases:
        vision = np.array(case.vision)
        vision[:, 40] += 0.5 * spread
        cases.append(replace(case, vision=vision))
    assert _verdicts("vision.channels", replace(gathered, cases=tuple(cases))) == {"fail"}


def test_one_wrong_embedding_row_fails(gathered: evidence.Evidence) -> None:
    """One token of the whole vocabulary."""
    assert gathered.manifest is not None
    recipe = gathered.manifest.recipe
    expected, table = _own_tables(recipe)
    table[777, 31] += 0.01 * np.abs(table[777]).max() * 2
    error = measure_vocabulary(table, expected, recipe.embedding, "")
    assert _verdicts("embedding.tokens", replace(gathered, vocabulary=error)) == {"fail"}


def test_noisy_logits_fail(gathered: evidence.Evidence) -> None:
    """Twice the noise of a clean export, on every answer."""
    cases = []
    for case in gathered.cases:
        noise = np.asarray(case.logits) - case.expected.logits
        cases.append(replace(case, logits=case.expected.logits + 2.5 * noise))
    broken = replace(gathered, cases=tuple(cases))
    assert "fail" in _verdicts("logits.teacher_forced", broken)
    assert _verdicts("logits.distribution", broken) == {"fail"}


def test_mapping_fault_is_named_by_layer(gathered: evidence.Evidence) -> None:
    """An activation off by a thousandth."""

    image, errors = next(iter(gathered.mapping.items()))
    activation = np.arange(12, dtype=np.float32).reshape(3, 4)
    (moved,) = layer_errors([LayerPair("layers.2", activation * np.float32(1.001), activation)])
    broken = tuple(moved if error.name == moved.name else error for error in errors)
    (result,) = results_of("mapping.activations", replace(gathered, mapping={image: broken}))
    assert result.verdict == "fail"
    assert "first in layers.2" in result.message


def test_nothing_compared_is_an_error(gathered: evidence.Evidence) -> None:
    """No vacuous pass."""
    assert _verdicts("mapping.activations", replace(gathered, mapping={})) == {"error"}


def test_processor_of_other_constants_fails(gathered: evidence.Evidence, tmp_path: Path) -> None:
    """Mean and std of another family in the checkpoint's processor; no processor at all is an error; null is transformers' default."""

    def verdicts() -> set[str]:
        pictures = replace(gathered.pictures, processor=find_processor(tmp_path))
        return _verdicts("preprocess.constants", replace(gathered, pictures=pictures))

    assert verdicts() == {"error"}
    config = json.loads((EMBEDDED / "processor_config.json").read_text())
    config["image_processor"]["image_std"] = [0.5, 0.5, 0.5]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert verdicts() == {"fail"}
    config["image_processor"] |= {"image_std": None}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert verdicts() == {"pass"}


def test_program_too_short_for_the_conversations_fails(gathered: evidence.Evidence) -> None:
    """A limit below the longest golden conversation."""
    methods = gathered.program.methods
    short = methods | {"get_max_seq_len": replace(methods["get_max_seq_len"], outputs=(620,))}
    broken = replace(gathered, program=replace(gathered.program, methods=short))
    assert _verdicts("splice.capacity", broken) == {"fail"}


def test_wrong_or_missing_metadata_fails(gathered: evidence.Evidence) -> None:
    """Each fact that a runner asks for, off by one or left out; the message says what a runner assumes."""
    methods = gathered.program.methods
    assert _verdicts("structure.metadata", gathered) == {"pass"}
    for name in FALLBACKS:
        (value,) = methods[name].outputs
        wrong = replace(methods[name], outputs=(int(str(value)) + 1,))  # type: ignore[arg-type]
        broken = replace(gathered, program=replace(gathered.program, methods=methods | {name: wrong}))
        (result,) = results_of("structure.metadata", broken)
        assert (result.verdict, result.where and result.where.method) == ("fail", name)
        silent = {key: facts for key, facts in methods.items() if key != name}
        quiet = replace(gathered, program=replace(gathered.program, methods=silent))
        (result,) = results_of("structure.metadata", quiet)
        assert (result.verdict, result.where and result.where.method) == ("fail", name)
        assert f"{name} is missing" in result.message


def test_another_exporters_few_methods_are_passed_with_what_runners_assume(gathered: evidence.Evidence) -> None:
    """Upstream's own export says get_max_seq_len and nothing else."""
    methods = {
        name: facts
        for name, facts in gathered.program.methods.items()
        if name not in FALLBACKS or name == "get_max_seq_len"
    }
    (result,) = results_of("structure.metadata", replace(gathered, program=replace(gathered.program, methods=methods)))
    assert result.verdict == "pass"
    assert "get_eos_ids is missing (expected: 2): runners take the tokenizer's alone" in result.message


def test_several_ends_of_an_answer_are_all_wanted(gathered: evidence.Evidence, tmp_path: Path) -> None:
    """generation_config.json names two; the file has to return both, in any order, and no third."""
    folder = Path(
        shutil.copytree(EMBEDDED, tmp_path / "model", ignore=shutil.ignore_patterns("*.pte", "images", "make"))
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 957]}))
    implied = measure_metadata(open_checkpoint(folder), gathered.recipe, Tokenizer(folder))
    several = replace(gathered, implied=implied)
    (result,) = results_of("structure.metadata", several)
    assert result.verdict == "fail"
    assert "get_eos_ids returns 2, expected [2, 957] (generation_config.json: [2, 957])" in result.message
    methods = gathered.program.methods
    for values, verdict in (((957, 2), "pass"), ((2, 957, 13), "fail")):
        made = methods | {"get_eos_ids": replace(methods["get_eos_ids"], outputs=values)}
        program = replace(gathered.program, methods=made)
        assert _verdicts("structure.metadata", replace(several, program=program)) == {verdict}


def test_a_cache_beyond_the_trained_positions_is_said(gathered: evidence.Evidence) -> None:
    """No fault of the bytes: it passes, and says so."""
    geometry = gathered.geometry
    short = replace(geometry, text=replace(geometry.text, max_positions=512))
    (result,) = results_of("structure.limits", replace(gathered, geometry=short))
    assert result.verdict == "pass"
    assert "trained for 512" in result.message


def test_structure_faults_fail(gathered: evidence.Evidence) -> None:
    """A lost delegation, a lost kernel, a smaller arena, another dtype, another limit."""
    artifact = open_artifact(EMBEDDED_PTE)
    decoder = artifact.methods["text_decoder"]

    def with_decoder(**fields: object) -> evidence.Evidence:
        methods = artifact.methods | {"text_decoder": replace(decoder, **fields)}
        return replace(gathered, program=program_facts(replace(artifact, methods=methods)))

    lost = decoder.operators | {"aten::addmm.out": 1}
    assert _verdicts("structure.delegation", with_decoder(operators=lost)) == {"fail"}
    fewer = {"XnnpackBackend": decoder.delegates["XnnpackBackend"] - 1}
    assert _verdicts("structure.delegation", gathered) == _verdicts("structure.census", gathered) == {"pass"}
    assert _verdicts("structure.census", with_decoder(delegates=fewer)) == {"fail"}
    without = replace(gathered, tolerances=Missing("there is no golden data", "verifier"))
    assert _verdicts("structure.census", without) == {"skipped"}
    assert _verdicts("structure.operators", with_decoder(operators=decoder.operators | {"my::op": 1})) == {"fail"}
    assert _verdicts("structure.memory", with_decoder(planned_bytes=1000)) == {"fail"}
    embeddings, position = decoder.inputs
    half = (replace(embeddings, dtype="HALF"), position)  # type: ignore[type-var]
    assert _verdicts("structure.signatures", with_decoder(inputs=half)) == {"fail"}
    shorter = (replace(embeddings, sizes=(1, 512, 256)), position)  # type: ignore[type-var]
    assert _verdicts("structure.limits", with_decoder(inputs=shorter)) == {"fail"}


@pytest.mark.parametrize(
    ("check_id", "metric", "place"), [("layers.price", VISION, "tower"), ("layers.profile", PROFILE, "profile")]
)
def test_block_outside_its_band_fails(gathered: evidence.Evidence, check_id: str, metric: str, place: str) -> None:
    """What the clean export measured passes on every image; one block a little below its band on one image fails, by name."""
    assert not isinstance(gathered.tolerances, Missing)
    band = gathered.tolerances.bands[metric]
    clean = [
        BlockError(*name.split(" on ")[:1], "part", 0, value, 1, name.split(" on ")[1])
        for name, value in band.measured.items()
    ]

    def judged(errors: list[BlockError]) -> list[CheckResult]:
        replay = Replay((), (), (), {}, {})
        layers = replace(LayerEvidence({}, replay), **{place: tuple(errors)})
        return results_of(check_id, replace(gathered, layers=layers))

    assert {result.verdict for result in judged(clean)} == {"pass"}
    for at in (0, len(clean) // 2, len(clean) - 1):
        allowed = band.allowed(list(band.measured)[at])
        assert allowed is not None
        worse = replace(clean[at], sqnr_db=allowed - 0.01 * band.margin)
        failed = [result for result in judged([*clean[:at], worse, *clean[at + 1 :]]) if result.verdict == "fail"]
        assert [result.case for result in failed] == [worse.block]
        assert f"on {worse.sample}" in failed[0].message
        left_out = [error for error in clean if error.block != worse.block]
        assert [r.case for r in judged(left_out) if r.verdict == "fail"] == [worse.block]


def test_layer_of_the_encoder_away_from_its_rung_fails(gathered: evidence.Evidence) -> None:
    """At its limit it passes, below it fails by name; without a rung nothing was verified, and the reason is said."""

    def judged(sqnr_db: float, **fields: Any) -> list[CheckResult]:
        blocks = [b for b in gathered.subjects.blocks if b.startswith("vision_encoder")]
        errors = [BlockError(block, "attention", 0, 60.0, 1, "blank", limit_db=50.0) for block in blocks]
        errors[1] = replace(errors[1], sqnr_db=sqnr_db)
        layers = replace(LayerEvidence({}, Replay((), (), (), {}, {})), blocks=tuple(errors), **fields)
        return results_of("layers.vision", replace(gathered, layers=layers))

    assert {result.verdict for result in judged(50.0)} == {"pass"}
    (broken,) = [result for result in judged(49.9) if result.verdict == "fail"]
    assert (broken.step, broken.case) == ("lowering", "vision_encoder.layers.0")
    unknown = judged(60.0, no_tower_rung="cannot find what XNNAdd is")
    assert {result.verdict for result in unknown} == {"error"}
    assert "cannot find what XNNAdd is" in unknown[0].message


def test_price_over_a_budget_is_explained_once(gathered: evidence.Evidence) -> None:
    """Ranges that cut off too much fail by themselves; what they cost is skipped where no band judges it, and fails where the ranges are sound."""
    bare = replace(gathered, tolerances=Missing("never calibrated", "verifier"), prices={"vision.sqnr_db": 90.0})
    assert not isinstance(bare.layers, Missing)
    at = next(index for method, index in bare.layers.alignment if method == "vision_encoder")
    use = RangeUse(0, "vision_encoder", at, 0, 0.3)
    clipped = replace(bare, layers=replace(bare.layers, replay=replace(bare.layers.replay, ranges=(use,))))
    checks = [check for check in CHECKS if check.id in ("layers.ranges", "vision.embedding")]

    def verdicts(checks: list[Check], given: evidence.Evidence) -> dict[str, set[str]]:
        made: dict[str, set[str]] = {}
        for result in run_checks(checks, given, foreign=False, unsound=""):
            made.setdefault(result.id, set()).add(result.verdict)
        return made

    assert verdicts(checks, clipped) == {"layers.ranges": {"fail"}, "vision.embedding": {"skipped"}}
    assert verdicts(checks, bare) == {"layers.ranges": {"pass"}, "vision.embedding": {"fail"}}
    assert verdicts(checks[1:], clipped) == {"vision.embedding": {"fail"}}


def _own_tables(recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """llava_tiny's embedding table, and what the recipe makes of it."""
    table = embedding_table(open_checkpoint())
    made = quantized_embedding(table, recipe.embedding)
    own = made.integers.float() * made.scales.float().repeat_interleave(EMBEDDING_GROUP, 1)
    return table.numpy(), own.numpy()


def test_hqq_may_clip_as_much_as_it_does_and_no_more(gathered: evidence.Evidence) -> None:
    """A table rounded as HQQ rounds it passes, though it clips by more than a step; one element half a step further fails."""
    assert gathered.manifest is not None
    recipe = replace(gathered.manifest.recipe, quantizer="hqq")
    table, own = _own_tables(recipe)

    def judged(actual: np.ndarray) -> CheckResult:
        error = measure_vocabulary(actual, table, recipe.embedding, "")
        (result,) = results_of("embedding.tokens", replace(gathered, vocabulary=error))
        return result

    assert judged(own).verdict == "pass"
    assert in_steps(np.abs(own - table), table, recipe.embedding).max() > 1.01
    moved = own.copy()
    moved[7, 3] += np.copysign(0.5 * np.abs(table[7, :EMBEDDING_GROUP]).max() / 127.5, own[7, 3] - table[7, 3])
    assert judged(moved).verdict == "fail"
    assert judged(moved).where.index == (7, 3)  # type: ignore[union-attr]
