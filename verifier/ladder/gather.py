"""Evidence layer by layer: some golden conversations on the traced runtime, replayed and held against every rung."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.artifact.plan import TensorValue
from verifier.artifact.program import Artifact
from verifier.artifact.storage import Storage
from verifier.audit.run import Audit, with_recipe_constants
from verifier.core.errors import VerifierError
from verifier.core.progress import OnProgress, no_progress
from verifier.core.system import return_freed
from verifier.core.types import Missing, Recipe
from verifier.families.conventions import DECODER, EMBEDDING, ENCODER, most_tokens
from verifier.families.definition import Definition
from verifier.families.driver import Caller, Script, converse, splice
from verifier.families.family import Family
from verifier.families.samples import Sample
from verifier.interpret.machine import Machine, MethodState
from verifier.ladder.align import align_program
from verifier.ladder.blocks import (
    DecoderBlocks,
    Taps,
    TracedCall,
    error_shares,
    find_taps,
    profile,
)
from verifier.ladder.counterparts import run_here
from verifier.ladder.evidence import AT_HOME, BlockError, Counterpart, LayerEvidence
from verifier.ladder.limits import over
from verifier.ladder.node_by_node import compare_nodes
from verifier.ladder.quantized import Form, Rounding, build_quantized_decoder
from verifier.ladder.records import Replay
from verifier.ladder.replay import Replayer, Tapped
from verifier.ladder.reproduction import save_reproduction
from verifier.ladder.tower import TowerRung, find_sites
from verifier.ladder.tower_blocks import TowerErrors, compare_tower, vision_layers
from verifier.ladder.trace import ALIGNMENT_BYTES, CallTrace, read_trace, require_trace
from verifier.operators.operator import ProgramFaultError, UnknownOperationError
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle, OutputOf, Runner, TraceRequest

SHARED_TOKENS = 16
"""Tokens of a large model's prompt on which its layers' shares in the error are measured: all layers' variants go through each."""
ANSWER_TOKENS = 3
"""Tokens of an answer that are traced: a prefill in three chunks, and two single-token calls."""
LARGE_CHUNK = 16
"""Of a large model: the first tokens of the prompt, and one single-token call behind them. A call of 7B leaves 1.5 GiB of cache alone,
and its linears take minutes for every hundred tokens."""
SLACK_BYTES = 4 << 20
TRIMMED_EVERY = 64
"""Instructions between which freed memory is given back."""
TIMEOUT_S = 3600.0


def choose_samples(samples: list[Sample], *, large: bool = False) -> list[Sample]:
    """The first sample, and the first whose image is not square: padding is computed inside the program. Of a large model, one."""
    first = samples[:1]
    if large:
        return [s for s in samples if s.image.shape[1] != s.image.shape[2]][:1] or first
    other = next((s for s in samples if s.image.shape[1] != s.image.shape[2]), None)
    return first + ([other] if other is not None and other is not samples[0] else [])


@dataclass(frozen=True)
class Traced:
    """Conversations as the runtime ran them with its event tracer on; the traces lie in `folders`, one after the other.
    `problem` is what it said if it did not get through."""

    folders: tuple[Path, ...]
    calls: tuple[TracedCall, ...] = ()
    problem: str = ""


def _scripts(caller: Caller, samples: list[Sample], *, patches: int, large: bool) -> list[tuple[Script, list[str]]]:
    """What is run in one process each, and the sample of each call.

    Of a large model the encoder runs by itself, and the decoder is fed with a little text alone: every call copies the whole cache, in
    four layouts, and 576 image tokens of a 7B model would leave 16 GB more, by arithmetic, beside packed weights of 3.4 GB.
    """
    together: tuple[Script, list[str]] = (Script(caller), [])
    apart: tuple[Script, list[str]] = (Script(caller), [])
    for sample in samples:
        answer, image = sample.golden.ids[:ANSWER_TOKENS], sample.image
        script, owners = together
        if large:
            apart[0].encode(image)
            apart[1].append(sample.golden.name)
            splice(script, (sample.prompt.before[:LARGE_CHUNK], answer[:1]), [], patches=patches)
        else:
            converse(script, image=image, prompt=sample.prompt, answer=answer, patches=patches)
        owners += [sample.golden.name] * (len(script.calls) - len(owners))
    return [apart, together] if large else [together]


def run_traced(
    artifact: Artifact,
    caller: Caller,
    samples: list[Sample],
    runner: Runner,
    folder: Path,
    *,
    patches: int,
    large: bool = False,
) -> Traced:
    """Run the samples one after the other on one loaded program, their traces into `folder`; a `large` model's encoder and decoder in
    processes of their own. Outputs are whole, those of all positions among them."""
    machine = Machine(artifact)
    folders: list[Path] = []
    calls: list[TracedCall] = []
    for number, (script, owners) in enumerate(_scripts(caller, samples, patches=patches, large=large)):
        folders.append(folder / str(number))
        folders[-1].mkdir()
        buffer_bytes = SLACK_BYTES + sum(
            traced_bytes(
                machine.methods[call.method],
                _tokens(script, place, patches),
                most_tokens(artifact.methods[call.method]) or artifact.max_seq_len,
            )
            for place, call in enumerate(script.calls)
        )
        kept = tuple(replace(call, keep=True, rows="all") for call in script.calls)
        result = runner.run(
            Bundle(artifact.path, kept, trace=TraceRequest(folders[-1], buffer_bytes)), timeout_s=TIMEOUT_S
        )
        if result.outcome != "ok":
            return Traced(tuple(folders), problem=f"the traced run ended in {result.outcome}: {result.message}")
        require_trace(folders[-1])
        for place, (call, owner) in enumerate(zip(kept, owners, strict=True)):
            inputs = [result.outputs[v.call] if isinstance(v, OutputOf) else v for v in call.inputs]
            tensors = tuple(torch.from_numpy(np.array(x)) for x in inputs)
            start = int(tensors[1][0]) if call.method == DECODER else 0
            output = torch.from_numpy(np.array(result.outputs[place]))
            calls.append(TracedCall(call.method, tensors, owner, output, start))
    return Traced(tuple(folders), tuple(calls))


def compare_layers(  # noqa: PLR0917
    artifact: Artifact,
    family: Family,
    recipe: Recipe,
    audit: Audit,
    definition: Definition,
    traced: Traced,
    runner: Runner,
    reproduction: Path | None = None,
    on_progress: OnProgress = no_progress,
) -> LayerEvidence | Missing:
    """Replay the traces and hold them against every rung; a wrong kernel is saved in the folder `reproduction`, if there is one. `on_progress`
    is called with the instructions that are done. Missing if the program did not get through, or does what the interpreter does not know. Raises `VerifierError` for our own failures."""
    try:
        alignment = align_program(Machine(artifact), audit)
        if traced.problem:
            return Missing(traced.problem, "program")
        taps = find_taps(artifact, audit)
        recipe_storage = with_recipe_constants(artifact, audit, large=family.large)
        seen = _counter(artifact, traced, on_progress)
        replayer = Replayer(artifact, recipe=recipe_storage, watched=taps.watched(), seen=seen)
        traces = _replay(replayer, traced)
    except UnknownOperationError as error:
        return Missing(error.one_line, "verifier")
    except ProgramFaultError as error:
        return Missing(str(error), "program")
    replay, tapped = replayer.finish(), replayer.tapped
    wrong_nodes = _first_wrong_node(replayer.shadow, replay, traces, runner, reproduction)
    del replayer, traces
    gc.collect()  # they refer to each other: 3 GiB of a 7B model's caches and contents; the decoders below need as much
    rounding = Rounding()
    quantized = build_quantized_decoder(family, Form(recipe, artifact, audit), rounding)
    decoder = DecoderBlocks(quantized, rounding, taps, family.checkpoint.geometry.text.layers)
    blocks = decoder.compare(traced.calls, tapped, on_progress)
    tower = _compare_tower(artifact, audit, definition, recipe_storage, taps, traced, tapped)
    found = profile(definition, taps, traced.calls, tapped)
    prompt = _prompt(definition, traced)
    shares = error_shares(definition, quantized, prompt[:, :SHARED_TOKENS] if family.large else prompt)
    tokens = {n: call.inputs[0].shape[1] for n, call in enumerate(traced.calls) if call.method == DECODER}
    return LayerEvidence(
        alignment,
        replay,
        (*blocks, *tower.against_rung),
        tuple(found),
        wrong_nodes=wrong_nodes,
        error_shares=shares,
        tokens=tokens,
        counterparts=_at_home(artifact, traced, runner),
        tower=tower.against_fp32,
        no_tower_rung=tower.problem,
    )


def _compare_tower(  # noqa: PLR0917
    artifact: Artifact,
    audit: Audit,
    definition: Definition,
    storage: Storage,
    taps: Taps,
    traced: Traced,
    tapped: Tapped,
) -> TowerErrors:
    """The encoder's layers against the quantized rung, with the constants of a storage, and against fp32."""
    try:
        rung = TowerRung(definition.encoder, find_sites(artifact, audit), storage)
        return compare_tower(definition, rung, taps, traced.calls, tapped)
    except UnknownOperationError as error:
        return TowerErrors((), tuple(vision_layers(definition, taps, traced.calls, tapped)), error.one_line)


def _prompt(definition: Definition, traced: Traced) -> Tensor:
    """Embeddings [1, S, D] of the text of the first sample."""
    first = traced.calls[0].sample
    texts = [c.inputs[0] for c in traced.calls if c.method == EMBEDDING and c.sample == first]
    return torch.cat([definition.embed(ids) for ids in texts], dim=1)


def _counter(artifact: Artifact, traced: Traced, on_progress: OnProgress) -> Callable[[], None]:
    """Counts the instructions of the traced calls."""
    whole, done = sum(len(artifact.plans[call.method].instructions) for call in traced.calls), 0

    def seen() -> None:
        nonlocal done
        on_progress("instructions", done, whole)
        done += 1
        if done % TRIMMED_EVERY == 0:
            return_freed()

    return seen


def _at_home(artifact: Artifact, traced: Traced, runner: Runner) -> tuple[Counterpart, ...] | Missing:
    """The traced calls on this machine, if they ran on one of another kind."""
    host = LocalRunner()
    if runner.isa == host.isa:
        return AT_HOME
    try:
        return run_here(artifact, traced.calls, host)
    except VerifierError as error:
        return Missing(error.one_line, "verifier")


def against_fp32(
    artifact: Artifact, audit: Audit, definition: Definition, traced: Traced
) -> tuple[list[BlockError], list[BlockError]]:
    """What is held against calibrated bands: errors of the vision tower's layers, and the profile over depth.

    Raises `VerifierError` if the program did not get through or cannot be replayed.
    """
    if traced.problem:
        raise VerifierError("the program could not be traced", got=traced.problem)
    taps = find_taps(artifact, audit)
    replayer = Replayer(artifact, watched=taps.watched())
    _replay(replayer, traced)
    tapped = replayer.tapped
    del replayer
    gc.collect()  # its contents, before fp32 layers take as much
    return vision_layers(definition, taps, traced.calls, tapped), profile(definition, taps, traced.calls, tapped)


def _replay(replayer: Replayer, traced: Traced) -> list[CallTrace]:
    traces = [trace for folder in traced.folders for trace in read_trace(folder)]
    if len(traces) != len(traced.calls):
        raise VerifierError("the trace has other calls than the run", got=len(traces), expected=len(traced.calls))
    for call, trace in zip(traced.calls, traces, strict=True):
        replayer.call(call.method, list(call.inputs), trace)
    return traces


def _first_wrong_node(
    machine: Machine, replay: Replay, traces: list[CallTrace], runner: Runner, reproduction: Path | None
) -> dict[tuple[str, int], str]:
    """Look into the first delegate that the runtime computes wrongly, if it has several nodes."""
    broken = [record for record in replay.compared if over(record) and "+" in record.operator]
    if not broken:
        return {}
    first = min(broken, key=lambda record: (record.call, record.instruction))
    place, state = (first.method, first.instruction), machine.methods[first.method]
    step = state.plan.instructions[first.instruction]
    tensors = [i for i in step.args if isinstance(state.plan.values[i], TensorValue)]
    recorded = dict(zip(tensors, traces[first.call][first.instruction], strict=False))
    inputs = [torch.from_numpy(recorded[i].array()) for i in state.operands(step)]
    try:
        wrong = next((e for e in compare_nodes(state, first.instruction, inputs, runner) if over(e.compared)), None)
    except VerifierError as error:
        return {place: f"Its nodes could not be run one by one ({error.what}: {error.got})"}
    if wrong is None:
        return {
            place: "Node by node and outside of the program, the delegate gives the right result: check threads, memory and the order of calls"
        }
    said = f"The first wrong node inside it is number {wrong.node} [{wrong.compared.call_text}]"
    if reproduction is None:
        return {place: said}
    what = f"{first.method}, instruction {first.instruction}, on {runner.name}. {said}."
    save_reproduction(reproduction, wrong.cut(), wrong.node, inputs, expected=wrong.expected, said=what)
    return {place: f"{said}; saved with its inputs in {reproduction}"}


def _tokens(script: Script, number: int, patches: int) -> int:
    first: Any = script.calls[number].inputs[0]
    if isinstance(first, OutputOf):
        source = script.calls[first.call]
        return patches if source.method == ENCODER else _tokens(script, first.call, patches)
    return int(first.shape[1]) if first.ndim == 2 else 0


def traced_bytes(state: MethodState, tokens: int, most: int) -> int:
    """Upper bound of what the tracer copies in one call of `tokens` tokens of at `most` so many: delegates' arguments, kernels' results, and the
    answer."""
    total = 0
    traced = [step.args if step.kind == "delegate" else state.results(step) for step in state.plan.instructions]
    for indices in (*traced, state.plan.outputs):
        for index in indices:
            value = state.plan.values[index]
            if isinstance(value, TensorValue):
                bound = value.size_bytes
                if value.dynamic and tokens and most in value.sizes:
                    bound = bound // most * tokens
                total += bound + 2 * ALIGNMENT_BYTES
    return total
