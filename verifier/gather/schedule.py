"""What checks look at, gathered: the references here, the program in children beside them, as much as the chosen checks need."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from verifier.audit.expected import TABLE
from verifier.audit.run import Audit, audit_weights
from verifier.core.errors import ArtifactError, GoldenError, VerifierError
from verifier.core.progress import OnProgress, Progress
from verifier.core.system import return_freed
from verifier.core.types import Missing
from verifier.families.answering import answer_samples, load_sample
from verifier.families.definition import Definition, Module
from verifier.families.pixels.processor import find_processor
from verifier.families.pixels.published import compare_published
from verifier.families.samples import Answered, Sample
from verifier.families.tokens.agreement import compare_with_transformers
from verifier.gather.children import (
    Children,
    converse,
    measure_speed,
    one_core_for_children,
    probe_cache,
    repeat,
    trace,
)
from verifier.gather.conversations import (
    ConversationBundle,
    collect_cases,
    collect_runtime,
    conversation_bundle,
    vocabulary_of,
)
from verifier.gather.eyes import choose, look, try_sizes
from verifier.gather.goldens import AnsweredGoldens, held_against_reference, with_answers
from verifier.gather.official import ask_official
from verifier.gather.opening import Opened, subjects_of
from verifier.gather.samples import (
    golden_by_its_processor,
    longest_conversation,
    probe_sample,
    to_this_prompt,
    user_sample,
)
from verifier.gather.second_look import QuantizedRung
from verifier.golden.bands import Tolerances, load_tolerances
from verifier.ladder.evidence import LayerEvidence
from verifier.ladder.gather import Traced, compare_layers
from verifier.measures.against_fp32 import LayerError, VocabularyError
from verifier.measures.audit import audit_records
from verifier.measures.channels import ChannelError, measure_channels
from verifier.measures.evidence import Case, Evidence, Part, RuntimeEvidence, golden_folder, unasked, with_foundations
from verifier.measures.eyes import EyesEvidence, SizeTried
from verifier.measures.mapping import measure_mapping
from verifier.measures.pictures import PictureEvidence
from verifier.measures.pixels import measure_pictures
from verifier.measures.probes import CacheEvidence, Speed, ThreadEvidence
from verifier.measures.program_facts import expected_signatures, program_facts
from verifier.measures.prompts import PromptEvidence, measure_prompts, measure_template
from verifier.measures.shipped import ShippedTokenizers, measure_shipped
from verifier.measures.tokens import TokenFacts, measure_metadata, measure_tokens
from verifier.measures.use import UseEvidence
from verifier.measures.vocabulary import measure_vocabulary, own_table
from verifier.runner.protocol import Result

P = ParamSpec("P")
R = TypeVar("R")
AnswerSamples = Callable[[Definition, Sequence[Sample]], list[Answered]]


def parts_needed(opened: Opened) -> frozenset[Part]:
    """What the chosen checks need."""
    return with_foundations(part for check in opened.checks for part in check.needs.parts)


def _audit(opened: Opened, on_progress: OnProgress) -> Audit | Missing:
    """The audit of the constants, or why there is none."""
    try:
        declared = opened.manifest is not None
        return audit_weights(opened.artifact, opened.family, opened.recipe, declared=declared, on_progress=on_progress)
    except VerifierError as error:
        return Missing(error.one_line, "program" if isinstance(error, ArtifactError) else "verifier")


def _compare_layers(
    opened: Opened, audit: Audit | Missing, definition: Definition, traced: Traced | Missing, on_progress: OnProgress
) -> LayerEvidence | Missing:
    """The comparison layer by layer."""
    if isinstance(traced, Missing):
        return traced
    if isinstance(audit, Missing):
        return audit
    return compare_layers(
        opened.artifact,
        opened.family,
        opened.recipe,
        audit,
        definition,
        traced,
        opened.runner,
        opened.request.reproduction,
        on_progress,
    )


def _tolerances(opened: Opened) -> Tolerances | Missing:
    try:
        return load_tolerances(golden_folder(opened.checkpoint), opened.checkpoint.sha256, opened.recipe.name)
    except GoldenError as error:
        return Missing(error.one_line, "verifier")


def gather(
    opened: Opened, progress: Progress, *, answer: AnswerSamples | None = None
) -> tuple[Evidence, QuantizedRung]:
    """Run references and runtime; nothing is judged here. `answer` gives the fp32 answers in place of `answer_samples`. The quantized rung is
    for what only a judgement of the evidence asks for.

    The program runs in children one after the other on one core while the references are computed on the other; an emulated one,
    in two rows of children.
    """
    parts = parts_needed(opened)
    if Part.PROMPTS in parts:
        with progress.stage("tokenizer against Hugging Face"):
            compare_with_transformers(opened.tokenizer)
    samples = _samples(opened)
    image = samples[0].image
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="verifier-trace-")))
        children = Children(stack.enter_context(ThreadPoolExecutor(opened.runner.at_once)), parts)

        @cache
        def probe() -> Future[CacheEvidence | Missing]:
            stack.enter_context(one_core_for_children())
            return children.submit(Part.CACHE, "the cache", probe_cache, opened, parts, image)

        golden = with_answers(opened, samples, progress, meanwhile=probe)
        opened, samples = golden.opened, list(golden.samples)
        # before the cache, if that is not asked yet: this process waits for it first
        tracing = children.submit(Part.LAYERS, "a trace", trace, opened, list(samples), folder)
        probed = probe()
        with progress.stage("fp32 reference"):
            definition = golden.definition or opened.family.definition(max_len=longest_conversation(opened, samples))
            if opened.request.image is not None:
                samples.append(user_sample(opened, definition))
            asked = _ask(children, opened, definition, samples)
            reference = _answers(golden, parts, definition, samples, answer or answer_samples)
        with progress.stage("the apps' pictures"):
            eyes = _eyes(opened, parts, definition, reference, answer or answer_samples)
            definition.forget()
        compared = _compare(opened, parts, definition, reference.samples, tracing, progress)
        with progress.stage(f"program on {opened.runner.name}: {len(samples)} conversations"):
            result = asked.conversed.result()
        with progress.stage("ExecuTorch's own runner"):
            asked.used.result()
        speed: Speed | Missing = unasked("time and memory")
        if Part.SPEED in parts:
            with progress.stage("time and memory"):
                children.pool.shutdown()
                speed = measure_speed(opened, definition.embedding, image)
    made, threads = asked.made, asked.repeated.result()
    runtime = collect_runtime(made, result, cache=probed.result(), threads=threads, speed=speed)
    beside = asked.beside(eyes)
    with progress.stage("answers against fp32"):
        evidence = _evidence(golden, definition, reference, compared, runtime, beside, made=made, result=result)
    return evidence, QuantizedRung(opened, compared.audit, definition, samples[0])


@dataclass(frozen=True)
class _Asked:
    """What the program, tokenizer files and the runner inside apps are asked while the references are computed."""

    made: ConversationBundle
    shipped: Future[ShippedTokenizers | Missing]
    conversed: Future[Result | Missing]
    tried: Future[tuple[SizeTried, ...] | Missing]
    repeated: Future[ThreadEvidence | Missing]
    used: Future[UseEvidence | Missing]

    def beside(self, eyes: EyesEvidence | Missing) -> _Beside:
        """The answers that are not the program's own, with what was seen of the apps' pictures."""
        if not isinstance(eyes, Missing):
            eyes = replace(eyes, tried=self.tried.result())
        return _Beside(self.shipped.result(), eyes, self.used.result())


def _ask(children: Children, opened: Opened, definition: Definition, samples: list[Sample]) -> _Asked:
    """Start all of it; one follows the other."""
    image, made, held = samples[0].image, _conversations(opened, samples), list(samples)
    files = (opened.to_ship, opened.checkpoint.directory, opened.tokenizer, opened.golden.images, opened.family.prompt)
    shipped = children.submit(Part.TOKENIZERS, "the tokenizer files", measure_shipped, *files)
    conversed = children.submit(Part.RUNTIME, "a conversation", converse, opened, children.parts, made.bundle)
    tried = children.submit(Part.EYES, "the sizes that apps feed", _try_sizes, opened, held)
    repeated = children.submit(Part.THREADS, "repetitions", repeat, opened, definition.embedding, image)
    used = children.submit(Part.USE, "the runner of apps", ask_official, opened, held, made, conversed)
    return _Asked(made, shipped, conversed, tried, repeated, used)


@dataclass(frozen=True)
class _Reference:
    """Samples, those of the checkpoint's own processor, and the fp32 answers to both; no answers if none were asked for."""

    samples: list[Sample]
    published: list[Sample]
    answers: list[Answered]


@dataclass(frozen=True)
class _Beside:
    """What was found beside the program's own methods: tokenizer files, the pictures of apps, and the runner inside them."""

    shipped: ShippedTokenizers | Missing
    eyes: EyesEvidence | Missing
    use: UseEvidence | Missing


@dataclass(frozen=True)
class _Compared:
    """What was compared while the program ran elsewhere."""

    mapping: dict[str, tuple[LayerError, ...]]
    pictures: PictureEvidence
    audit: Audit | Missing
    layers: LayerEvidence | Missing


def _conversations(opened: Opened, samples: list[Sample]) -> ConversationBundle:
    vocabulary = opened.checkpoint.geometry.text.vocabulary
    patches, large = opened.family.patches, opened.family.large
    program, caller = opened.artifact, opened.caller
    return conversation_bundle(program, caller, samples, patches=patches, vocabulary=vocabulary, large=large)


def _answers(
    golden: AnsweredGoldens,
    parts: frozenset[Part],
    definition: Definition,
    samples: list[Sample],
    answer: AnswerSamples,
) -> _Reference:
    """The fp32 answers; what is known of the golden ones is not computed again. Golden answers that were made with another tokenizer are held
    against this one's prompt, those of the package against the reference."""
    opened = golden.opened
    published = golden_by_its_processor(opened, samples) if Part.PUBLISHED in parts else []
    if Part.CONVERSATIONS not in parts:
        return _Reference(samples, published, [])
    known = list(golden.known)  # of the first samples, or nothing
    answers = [*known, *answer(definition, [*samples, *published][len(known) :])]
    if opened.golden.packaged:
        samples = held_against_reference(golden, samples, answers)
    elif opened.golden.images and not opened.tokenizer.rule.same_prompt(opened.golden.prompt_rule):
        pairs = zip(samples, answers[: len(samples)], strict=True)
        samples = [to_this_prompt(opened, sample, reference) for sample, reference in pairs]
    return _Reference(samples, published, answers)


def _try_sizes(opened: Opened, samples: list[Sample]) -> tuple[SizeTried, ...]:
    return try_sizes(opened, choose(opened, samples))


def _eyes(
    opened: Opened, parts: frozenset[Part], definition: Definition, reference: _Reference, answer: AnswerSamples
) -> EyesEvidence | Missing:
    """What the apps' paths make of some pictures, and what the definition says to it."""
    if Part.EYES not in parts:
        return unasked("the apps' pictures")
    known = tuple(zip(reference.samples, reference.answers, strict=False))
    return look(opened, choose(opened, reference.samples), definition, known, answer)


def _compare(  # noqa: PLR0917
    opened: Opened,
    parts: frozenset[Part],
    definition: Definition,
    samples: list[Sample],
    tracing: Future[Traced | Missing],
    progress: Progress,
) -> _Compared:
    """The comparisons of this process; what they take is given back."""
    with progress.stage("definition against Hugging Face"):
        mapping = measure_mapping(opened.family, definition, samples) if Part.MAPPING in parts else {}
    with progress.stage("pictures"):
        pictures = _pictures(opened, parts, definition, samples)
    with progress.stage("audit of the constants"):
        audit = _audit(opened, progress.counted) if Part.AUDIT in parts else unasked("the audit")
    with progress.stage("layer by layer"):
        layers = _compare_layers(opened, audit, definition, tracing.result(), progress.counted)
    definition.forget()
    gc.collect()  # the quantized decoder's modules refer to each other
    return_freed()
    return _Compared(mapping, pictures, audit, layers)


def _pictures(
    opened: Opened, parts: frozenset[Part], definition: Definition, samples: Sequence[Sample]
) -> PictureEvidence:
    count = len(opened.golden.images) if Part.PIXELS in parts else 0
    given = Part.PIXELS in parts and opened.request.image is not None
    return measure_pictures(
        samples[:count],
        samples[-1] if given else None,
        find_processor(opened.checkpoint.directory),
        opened.family.pixels,
        _normalization(opened, definition),
        square=opened.recipe.static_image_shape,
        with_drawn=Part.DRAWN_PIXELS in parts,
        with_files=Part.PICTURE_FILES in parts,
    )


def _normalization(opened: Opened, definition: Definition) -> Module:
    """What makes normalized pixels of a picture: the program inside, as the definition does, or the app before it."""
    if opened.family.convention.pixels == "bytes":
        return definition.encoder.normalize
    caller = opened.caller
    return lambda picture: torch.from_numpy(caller.image(picture.numpy()))


def _evidence(  # noqa: PLR0917
    golden: AnsweredGoldens,
    definition: Definition,
    reference: _Reference,
    compared: _Compared,
    runtime: RuntimeEvidence,
    beside: _Beside,
    *,
    made: ConversationBundle,
    result: Result | Missing,
) -> Evidence:
    """All of it. Whole tables that the program gave are measured here, and not kept."""
    opened = golden.opened
    parts, samples, answers = parts_needed(opened), reference.samples, reference.answers
    folder, side_px = opened.checkpoint.directory, opened.checkpoint.geometry.vision.image_px
    count = len(opened.golden.images)
    cases = collect_cases(made, result, samples, answers[: len(samples)], side_px=side_px) if answers else ()
    vocabulary: VocabularyError | Missing = unasked("the embedding of every token")
    if Part.VOCABULARY in parts:
        table, audit = vocabulary_of(made, result), compared.audit
        scheme, own = opened.recipe.embedding, None
        if isinstance(audit, Audit):
            scheme, own = audit.source.scheme(TABLE), own_table(opened.artifact, audit)
        vocabulary = measure_vocabulary(table, definition.embedding.numpy(), scheme, runtime.message, own)
    channels: ChannelError | Missing = unasked("the channels of the final hidden state")
    if Part.CHANNELS in parts:
        head = definition.head.numpy()
        channels = measure_channels([case.logits for case in cases[:count]], answers[:count], head)
    return Evidence(
        program=program_facts(opened.artifact),
        convention=opened.family.convention,
        expected_signatures=expected_signatures(opened.artifact, opened.family),
        manifest=opened.manifest,
        geometry=opened.checkpoint.geometry,
        patches=opened.family.patches,
        tokens=_tokens(opened, cases, runtime),
        prompts=_if_needed(parts, Part.PROMPTS, "prompts", _prompts, opened),
        template=_if_needed(
            parts, Part.TEMPLATE, "the chat template", measure_template, folder, opened.tokenizer, opened.family.prompt
        ),
        implied=_if_needed(
            parts, Part.METADATA, "the metadata", measure_metadata, opened.checkpoint, opened.recipe, opened.tokenizer
        ),
        recipe=opened.recipe,
        subjects=subjects_of(opened),
        audit=audit_records(opened.artifact, compared.audit),
        layers=compared.layers,
        expectation=opened.expectation,
        tolerances=_tolerances(opened),
        budget=opened.budget,
        cases=cases[:count],
        user_case=cases[-1] if opened.request.image is not None and cases else None,
        mapping=compared.mapping,
        pictures=compared.pictures,
        vocabulary=vocabulary,
        channels=channels,
        runtime=runtime,
        rounding_db=unasked("what rounding costs"),
        shipped=beside.shipped,
        use=beside.use,
        published=compare_published(samples, reference.published, answers) if answers else (),
        goldens=golden.origin,
        eyes=beside.eyes,
        prices=opened.request.prices,
    )


def _if_needed(
    parts: frozenset[Part], part: Part, what: str, measure: Callable[P, R | Missing], *given: P.args, **named: P.kwargs
) -> R | Missing:
    """What is computed of a part, or that no check asked for it."""
    return measure(*given, **named) if part in parts else unasked(what)


def _tokens(opened: Opened, cases: Sequence[Case], runtime: RuntimeEvidence) -> TokenFacts:
    return measure_tokens(
        opened.tokenizer,
        vocabulary=opened.checkpoint.geometry.text.vocabulary,
        answers=[case.sample.golden.ids for case in cases],
        logits=[*(case.logits for case in cases), *runtime.free.values()],
    )


def _prompts(opened: Opened) -> PromptEvidence:
    return measure_prompts(
        opened.tokenizer,
        opened.family.prompt,
        [image.question for image in opened.golden.images],
        opened.caller,
        patches=opened.family.patches,
        limit=opened.artifact.max_seq_len,
    )


def _samples(opened: Opened) -> list[Sample]:
    """The golden images with their prompts; one that is made up where there are none."""
    family, square = opened.family, opened.recipe.static_image_shape
    golden = [load_sample(image, opened.tokenizer, family, square=square) for image in opened.golden.images]
    return golden or [probe_sample(opened.tokenizer, family, square=square)]
