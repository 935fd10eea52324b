"""Give the same calls to every runtime, and look for the first instruction wherever bits differ."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from verifier.audit.run import audit_weights
from verifier.core.compare import EQUAL_DB, Difference, compare
from verifier.core.errors import RunnerError, VerifierError
from verifier.core.progress import Progress
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Opened, Request, open_request
from verifier.interpret.machine import Machine
from verifier.ladder.align import align_program
from verifier.ladder.records import Aligned
from verifier.operators.operator import UnknownOperationError
from verifier.runner.environments import EnvironmentRunner, environment_runner
from verifier.runner.protocol import ArgmaxOf, Array, Bundle, OutputOf, Result, Runner, program_hash
from verifier.skews.conversation import Asked, ask, favoured_tokens, same_bits
from verifier.skews.locate import Prefixes, first_change
from verifier.skews.records import FirstChange, MethodSkew, RuntimeSkew, Skew

PICTURES, OF_LARGE = 6, 1
"""Most pictures; those of a large model."""


def compare_runtimes(
    pte: Path, model: str | None, words: Sequence[str], *, progress: Progress, pictures: int | None = None
) -> Skew:
    """One file on several releases (`environment_runner` says which words name one); the first that runs is the base. Raises `VerifierError` if the file
    cannot be opened, or runs on none of them."""
    opened = open_request(Request(pte, model, checks=("logits.*", "greedy.*")))
    opened.runner.close()
    runners: dict[str, EnvironmentRunner] = {}
    found: dict[str, RuntimeSkew] = {}
    for word in dict.fromkeys(words):
        with progress.stage(f"environment of {word}"):
            try:
                runners[word] = environment_runner(word)
            except RunnerError as error:
                found[word] = RuntimeSkew(word, reason=error.one_line)
    asked = ask(opened, pictures or (OF_LARGE if opened.family.large else PICTURES))
    base, said = _base(runners, asked, found, progress)
    find = _Search(opened, base, progress)
    for word, runner in runners.items():
        if runner is not base and word not in found:
            found[word] = _against(base, said, runner, asked, find, progress)
    return Skew(
        opened.artifact.path.name,
        program_hash(opened.artifact.path),
        opened.checkpoint.name,
        base.version,
        said.versions,
        asked.names,
        tuple(found[word] for word in dict.fromkeys(words) if word in found),
    )


def _base(
    runners: dict[str, EnvironmentRunner], asked: Asked, found: dict[str, RuntimeSkew], progress: Progress
) -> tuple[EnvironmentRunner, Result]:
    """The first runtime that answers, with its answers; those before it are noted."""
    for word, runner in runners.items():
        with closing(runner), progress.stage(f"the program on {runner.name}"):
            result = _kept(runner, asked.bundle)
        if result.outcome == "ok":
            return runner, result
        found[word] = RuntimeSkew(runner.version, result.versions, reason=f"{result.outcome}: {result.message}")
    raise RunnerError(
        "the program runs on none of the runtimes",
        got="; ".join(f"{one.runtime}: {one.reason}" for one in found.values()),
        fix="name a release that runs here first",
    )


def _kept(runner: Runner, bundle: Bundle) -> Result:
    """Every output of every call comes back: those of embeddings and of the encoder too."""
    return run_bundle(runner, replace(bundle, calls=tuple(replace(call, keep=True) for call in bundle.calls)))


class _Search:
    """Looks for first changes; what is needed for that alone is made when it is asked for."""

    def __init__(self, opened: Opened, base: Runner, progress: Progress) -> None:
        self.opened, self.base, self.progress = opened, base, progress

    @cached_property
    def aligned(self) -> dict[tuple[str, int], Aligned]:
        """Modules of the instructions; none where the weights cannot be told."""
        try:
            audit = audit_weights(self.opened.artifact, self.opened.family, self.opened.recipe, compare=False)
            return align_program(Machine(self.opened.artifact), audit)
        except VerifierError:
            return {}

    def looked_into(self, one: MethodSkew, asked: Asked, said: Result, runner: Runner) -> MethodSkew:
        """The method with what begins its difference, or why that could not be found."""
        try:
            alone, first = self.alone(one.method, asked, said, runner)
        except (VerifierError, UnknownOperationError) as error:
            return replace(one, problem=" ".join(str(error).split()))
        return replace(one, alone=alone, first=first)

    def alone(self, method: str, asked: Asked, said: Result, runner: Runner) -> tuple[int, FirstChange | None]:
        """How many calls of a method differ on the base's own inputs, and the instruction that begins it in the first one."""
        calls = [
            (number, replace(call, inputs=tuple(_given(x, said) for x in call.inputs), keep=True))
            for number, call in enumerate(asked.bundle.calls)
            if call.method == method
        ]
        result = _kept(runner, Bundle(asked.bundle.pte, tuple(call for _, call in calls)))
        if result.outcome != "ok":
            got = f"{result.outcome}: {result.message}"
            raise RunnerError(f"{method} by itself does not run on {runner.name}", got=got)
        differing = [
            place
            for place, (number, _) in enumerate(calls)
            if not same_bits(said.outputs[number], result.outputs[place])
        ]
        if not differing:
            return 0, None
        with tempfile.TemporaryDirectory(prefix="verifier-skew-") as folder:
            prefixes = Prefixes(self.opened, method, [call for _, call in calls[: differing[0] + 1]], Path(folder))
            found = first_change(prefixes, self.base, runner)
        if found is None:
            return len(differing), None
        module = self.aligned.get((method, found.instruction))
        return len(differing), replace(found, call=calls[differing[0]][0], module=module.module if module else "")


def _given(value: Array | OutputOf | ArgmaxOf, said: Result) -> Array:
    """An input as an array: what the base had computed for it."""
    if isinstance(value, OutputOf):
        return said.outputs[value.call]
    if isinstance(value, ArgmaxOf):
        return np.array([[favoured_tokens(said, [value.call])[0]]], np.int64)
    return value


def _against(  # noqa: PLR0917
    base: EnvironmentRunner, said: Result, runner: EnvironmentRunner, asked: Asked, find: _Search, progress: Progress
) -> RuntimeSkew:
    with closing(runner), progress.stage(f"the program on {runner.name}"):
        result = _kept(runner, asked.bundle)
    if result.outcome != "ok":
        return RuntimeSkew(runner.version, result.versions, reason=f"{result.outcome}: {result.message}")
    methods = []
    for method in dict.fromkeys(call.method for call in asked.bundle.calls):
        numbers = [number for number, call in enumerate(asked.bundle.calls) if call.method == method]
        worst, differing = _worst(said, result, numbers)
        one = MethodSkew(method, len(numbers), differing, worst)
        if differing:
            with progress.stage(f"the first change of {method} from {base.version} to {runner.version}"):
                one = find.looked_into(one, asked, said, runner)
        methods.append(one)
    pairs = [call for calls in asked.fixed for call in calls]
    other = sum(a != b for a, b in zip(favoured_tokens(said, pairs), favoured_tokens(result, pairs), strict=True))
    changed = [
        name
        for name, calls in zip(asked.names, asked.free, strict=True)
        if favoured_tokens(said, calls) != favoured_tokens(result, calls)
    ]
    return RuntimeSkew(
        runner.version, result.versions, tuple(methods), len(pairs), other, len(asked.names), tuple(changed)
    )


def _worst(said: Result, result: Result, numbers: Sequence[int]) -> tuple[float, int]:
    """The smallest SQNR of some calls, and how many of them have other bits."""
    worst, differing = EQUAL_DB, 0
    for number in numbers:
        ours, theirs = said.outputs[number], result.outputs[number]
        if same_bits(ours, theirs):
            continue
        differing += 1
        made = compare(actual=theirs, expected=ours, masked=True)
        worst = min(worst, made.sqnr_db if isinstance(made, Difference) else -np.inf)
    return worst, differing
