"""The only orchestrator: open, gather evidence, check, judge. Stages know nothing of each other."""

from __future__ import annotations

import gc
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifier.artifact.program import Artifact
from verifier.audit.run import Audit, audit_weights
from verifier.checkpoint import Checkpoint
from verifier.checks.device import unsound
from verifier.errors import ArtifactError, GoldenError, VerifierError
from verifier.evidence import (
    LAST_TOKENS,
    Evidence,
    FullAnswer,
    RuntimeEvidence,
    collect_cases,
    collect_vocabulary,
    conversation_bundle,
    golden_folder,
    logits_of,
    mapping_pairs,
    run_bundle,
)
from verifier.export.manifest import cpu_kind, package_versions
from verifier.facts import facts
from verifier.figures import figures
from verifier.golden import GoldenSet, Tolerances, load_tolerances
from verifier.ladder.gather import LayerEvidence, Traced, choose_samples, compare_layers, run_traced
from verifier.ladder.noise import NOISE_TOKENS, RoundingNoise, rounding_noise_db
from verifier.ladder.quantized import Held, Rounding, build_quantized_decoder, held_in, nothing_held
from verifier.memory import return_freed
from verifier.model.agreement import compare_with_transformers
from verifier.model.definition import Definition, build_definition, embedding_table
from verifier.model.prompt import BEFORE_IMAGE, DEFAULT_QUESTION, SEED_CUE, after_image
from verifier.model.streaming import is_large
from verifier.model.tokenizer import Tokenizer
from verifier.opening import Opened, Request, open_request, planned_cases, subjects_of
from verifier.probes.kvcache import CacheEvidence, ask_cache
from verifier.probes.speed import Speed, ask_speed
from verifier.probes.threads import ThreadEvidence, ask_threads
from verifier.probes.tokenizer import TokenizerEvidence, ToShip, ask_tokenizers
from verifier.progress import Progress, Tell, hushed
from verifier.published import compare_published
from verifier.reference import Answered, Sample, answer_samples, load_sample
from verifier.runner.protocol import Bundle, Result
from verifier.samples import USER_ANSWER_TOKENS, golden_by_its_processor, probe_sample, to_this_prompt, user_sample
from verifier.types import CheckResult, Recipe
from verifier.verdict import Judgement, doubt, judge_run

AnswerSamples = Callable[[Definition, Sequence[Sample]], list[Answered]]
CONVERSING = ("preprocess.", "splice.", "vision.", "embedding.", "logits.", "greedy.")
"""Families that look at the golden conversations."""
PUBLISHED = "preprocess.processor"
"""The check that looks at answers to the checkpoint's own processor."""


@dataclass(frozen=True)
class Run:
    """A finished verification. `partial` if something was left out on request: a pass then speaks for what was checked. `facts` is what
    another run is compared by, `figures` what a reader looks at, `stage_s` where the time went, `environment` the machine and packages that judged."""

    request: Request
    artifact: Artifact
    checkpoint: Checkpoint
    recipe: Recipe
    target: dict[str, Any]
    results: list[CheckResult]
    judgement: Judgement
    wall_s: float
    peak_rss_bytes: int
    partial: bool
    facts: dict[str, Any]
    figures: dict[str, Any]
    stage_s: dict[str, float]
    environment: dict[str, Any]


def _wants(opened: Opened, *families: str) -> bool:
    return any(check.id.startswith(families) for check in opened.checks)


def _audit(opened: Opened, tell: Tell) -> Audit | VerifierError:
    """The audit of the constants, or why there is none. Not made if no check wants it."""
    if not _wants(opened, "weights.", "layers.", "device."):
        return VerifierError("no check asked for the audit")
    try:
        return audit_weights(opened.artifact, opened.checkpoint, opened.recipe, tell=tell)
    except VerifierError as error:
        return error


def _compare_layers(
    opened: Opened, audit: Audit | VerifierError, definition: Definition, traced: Traced | None, tell: Tell
) -> LayerEvidence | None:
    """The comparison layer by layer; None if no check wants it."""
    if traced is None:
        return None
    if isinstance(audit, VerifierError):
        culprit = "program" if isinstance(audit, ArtifactError) else "verifier"
        return LayerEvidence({}, None, problem=audit.one_line, culprit=culprit)
    return compare_layers(
        opened.artifact,
        opened.checkpoint,
        opened.recipe,
        audit,
        definition,
        traced,
        opened.runner,
        opened.request.reproduction,
        tell,
    )


def _tolerances(opened: Opened) -> Tolerances | GoldenError:
    try:
        return load_tolerances(golden_folder(opened.checkpoint), opened.checkpoint.sha256, opened.recipe.name)
    except GoldenError as error:
        return error


def _probe_cache(opened: Opened, image: Tensor) -> CacheEvidence | None:
    """The cache probes, None if no check wants it."""
    if not _wants(opened, "kvcache."):
        return None
    table = embedding_table(opened.checkpoint).numpy()
    in_chunks = _wants(opened, "kvcache.chunks", "kvcache.capacity")
    return ask_cache(
        opened.artifact,
        table,
        image.numpy(),
        lambda bundle: run_bundle(opened.runner, bundle),
        in_chunks=in_chunks,
        large=is_large(opened.checkpoint),
    )


def _ask_threads(opened: Opened, table: Tensor, image: Tensor) -> ThreadEvidence | None:
    """The repetitions, None if no check wants them."""
    if not _wants(opened, "threads."):
        return None
    return ask_threads(
        opened.artifact,
        table.numpy(),
        image.numpy(),
        lambda bundle: run_bundle(opened.runner, bundle),
        large=is_large(opened.checkpoint),
    )


def tokenizers_asked(
    to_ship: ToShip, checkpoint: Checkpoint, tokenizer: Tokenizer, golden: GoldenSet
) -> TokenizerEvidence:
    """What ExecuTorch makes of the tokenizer files that ship."""
    questions = [image.question for image in golden.images] or [DEFAULT_QUESTION]
    return ask_tokenizers(
        to_ship,
        checkpoint.directory,
        before=[BEFORE_IMAGE],
        behind=[after_image(question) if question else SEED_CUE for question in questions],
        front=[tokenizer.bos_id] if tokenizer.adds_bos else [],
    )


def measure_speed(opened: Opened, table: Tensor, image: Tensor) -> Speed:
    """Time and memory of a conversation; whoever asks is alone on the machine."""
    return ask_speed(
        opened.artifact,
        table.numpy(),
        image.numpy(),
        lambda bundle: run_bundle(opened.runner, bundle),
        patches=opened.checkpoint.geometry.vision.patches,
        large=is_large(opened.checkpoint),
    )


def gather(opened: Opened, progress: Progress, *, answer: AnswerSamples | None = None) -> Evidence:
    """Run references and runtime; nothing is judged here. `answer` gives the fp32 answers in place of `answer_samples`.

    The program runs in children one after the other on one core while the references are computed on the other; an emulated one,
    in two rows of children.
    """
    checkpoint, artifact, golden = opened.checkpoint, opened.artifact, opened.golden
    geometry = checkpoint.geometry
    tokenizer = opened.tokenizer
    if _wants(opened, *CONVERSING, "layers.", "device."):
        with progress.stage("tokenizer against Hugging Face"):
            compare_with_transformers(tokenizer)
    square = opened.recipe.static_image_shape
    samples = [load_sample(i, tokenizer, side_px=geometry.vision.image_px, square=square) for i in golden.images]
    samples = samples or [probe_sample(tokenizer, side_px=geometry.vision.image_px, square=square)]
    with ExitStack() as stack:
        stack.enter_context(_one_core_for_children())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verifier-trace-")))
        children = stack.enter_context(ThreadPoolExecutor(opened.runner.at_once))
        tracing = children.submit(_trace, opened, list(samples), folder)  # first: this process waits for it first
        probed = children.submit(_probe_cache, opened, samples[0].image)
        shipped = (
            children.submit(tokenizers_asked, opened.to_ship, checkpoint, tokenizer, golden)
            if _wants(opened, "tokenizer.")
            else None
        )
        with progress.stage("fp32 reference"):
            longest = max(s.prompt.length(geometry.vision.patches) + len(s.golden.ids) for s in samples)
            max_len = max(longest, min(artifact.max_seq_len, longest + USER_ANSWER_TOKENS))
            definition = build_definition(checkpoint, max_len=max_len)
            if opened.request.image is not None:
                samples.append(user_sample(opened, definition))
            made = conversation_bundle(
                artifact,
                samples,
                patches=geometry.vision.patches,
                vocabulary=geometry.text.vocabulary,
                large=is_large(checkpoint),
            )
            answered = children.submit(_converse, opened, made.bundle)
            repeated = children.submit(_ask_threads, opened, definition.embedding, samples[0].image)
            published = golden_by_its_processor(opened, samples) if _wants(opened, PUBLISHED) else []
            answers = (
                (answer or answer_samples)(definition, [*samples, *published]) if _wants(opened, *CONVERSING) else []
            )
            if answers and golden.images and not tokenizer.rule.same_prompt(golden.prompt_rule):
                pairs = zip(samples, answers[: len(samples)], strict=True)
                samples = [to_this_prompt(opened, sample, reference) for sample, reference in pairs]
            definition.forget()
        with progress.stage("definition against Hugging Face"):
            mapping = mapping_pairs(checkpoint, definition, samples) if _wants(opened, "mapping.") else {}
        with progress.stage("audit of the constants"):
            audit = _audit(opened, progress.counted)
        with progress.stage("layer by layer"):
            layers = _compare_layers(opened, audit, definition, tracing.result(), progress.counted)
        definition.forget()
        gc.collect()  # the quantized decoder's modules refer to each other
        return_freed()
        with progress.stage(f"program on {opened.runner.name}: {len(samples)} conversations"):
            result = answered.result()
        speed = None
        if _wants(opened, "budget.peak", "budget.prefill", "budget.decode"):
            with progress.stage("time and memory"):
                children.shutdown()
                speed = measure_speed(opened, definition.embedding, samples[0].image)
    cases = collect_cases(made, result, samples, answers[: len(samples)]) if answers else ()
    return Evidence(
        artifact=artifact,
        manifest=opened.manifest,
        checkpoint=checkpoint,
        definition=definition,
        tokenizer=tokenizer,
        recipe=opened.recipe,
        subjects=subjects_of(opened),
        audit=audit,
        layers=layers,
        golden=golden,
        expectation=opened.expectation,
        tolerances=_tolerances(opened),
        budget=opened.budget,
        cases=cases[: len(golden.images)],
        user_case=cases[-1] if opened.request.image is not None else None,
        mapping=mapping,
        runtime=RuntimeEvidence(
            result,
            collect_vocabulary(made, result),
            FullAnswer(logits_of(made.full, result), made.full.position, LAST_TOKENS + 1),
            {name: logits_of(conversation, result) for name, conversation in made.free.items()},
            logits_of(made.again, result),
            probed.result(),
            repeated.result(),
            speed,
        ),
        rounding=RoundingNoise(partial(_rounding_noise_db, opened, audit, definition, samples[0])),
        published=compare_published(samples, published, answers) if answers else (),
        shipped=None if shipped is None else shipped.result(),
    )


def _rounding_noise_db(opened: Opened, audit: Audit | VerifierError, definition: Definition, sample: Sample) -> float:
    """What int8 activations cost this checkpoint's decoder on the first tokens of a prompt, as SQNR in dB."""
    rounding = Rounding()
    held: Held = nothing_held
    if is_large(opened.checkpoint) and not isinstance(audit, VerifierError):
        held = held_in(opened.artifact, audit)
    quantized = build_quantized_decoder(opened.checkpoint, opened.recipe, held, rounding)
    ids = torch.tensor([(*sample.prompt.before, *sample.prompt.after)[:NOISE_TOKENS]])
    return rounding_noise_db(quantized, rounding, definition.embed(ids))


@contextmanager
def _one_core_for_children() -> Iterator[None]:
    """Leave a core to the program under test: OpenMP's threads wait for each other, and lose more than they win (a tenth)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _converse(opened: Opened, bundle: Bundle) -> Result:
    """The golden conversations, if a check wants them; no call at all if others only want to know what ran: operators,
    versions, CPU features. The audit of weights alone runs nothing."""
    if _wants(opened, *CONVERSING):
        return run_bundle(opened.runner, bundle)
    if _wants(opened, "structure.", "layers.", "kvcache.", "threads.", "device."):
        # a device tells which instructions its kernels are made of once some were chosen: the encoder, a lookup, and a first chunk of text
        calls = bundle.calls[:3] if _wants(opened, "device.") else ()
        return run_bundle(opened.runner, replace(bundle, calls=calls))
    return Result("ok", "no check asked for a conversation")


def _trace(opened: Opened, samples: list[Sample], folder: Path) -> Traced | None:
    if not _wants(opened, "layers.", "device."):
        return None
    patches, large = opened.checkpoint.geometry.vision.patches, is_large(opened.checkpoint)
    chosen = choose_samples(samples, large=large)
    return run_traced(opened.artifact, chosen, opened.runner, folder, patches=patches, large=large)


def _target(opened: Opened, evidence: Evidence) -> dict[str, Any]:
    """The machine that ran the program, as its runner says."""
    ran = evidence.runtime.conversations
    return {
        "name": opened.runner.name,
        "isa": opened.runner.isa,
        "cpu_features": list(ran.cpu_features),
        "instructions": {name: said or "right" for name, said in ran.instructions.items()},
        "in_use": list(ran.in_use),
        "conditions": ran.conditions,
        "versions": ran.versions,
    }


def run_checks(opened: Opened, evidence: Evidence) -> list[CheckResult]:
    """All results of all checks, in registry order. On a machine of another kind than this one the kernels that ran are the
    device's, and so is the step."""
    results = [result for check in opened.checks for result in check.run(check, evidence)]
    foreign = opened.runner.isa != platform.machine()
    placed = [replace(r, step="device") if foreign and r.step == "kernel" else r for r in results]
    return doubt(placed, unsound(evidence.runtime.conversations.instructions))


def verify(request: Request, progress: Progress | None = None) -> Run:
    """Verify one file. Raises `VerifierError` when it cannot be verified at all."""
    progress = progress or Progress(quiet=True)
    begun = time.perf_counter()
    with hushed() as stream:
        progress.stream = stream
        with progress.stage("open"):
            opened = open_request(request, progress.transferred)
        with closing(opened.runner):
            evidence = gather(opened, progress)
        with progress.stage("checks"):
            results = run_checks(opened, evidence)
            known, drawn = facts(evidence), figures(evidence)
    judgement = judge_run(results, expected=len(planned_cases(opened)), allow_partial=request.allow_partial)
    usage = max(resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return Run(
        request,
        opened.artifact,
        opened.checkpoint,
        opened.recipe,
        _target(opened, evidence),
        results,
        judgement,
        time.perf_counter() - begun,
        usage,
        partial=bool(request.checks or request.images) or request.allow_partial,
        facts=known,
        figures=drawn,
        stage_s={name: round(seconds, 1) for name, seconds in progress.stage_s.items()},
        environment={"cpu": cpu_kind(), "cores": os.cpu_count(), "versions": package_versions()},
    )
