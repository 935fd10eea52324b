"""Runs of the program under test, in children beside this process: conversations, a trace, the cache, repetitions, time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from verifier.core.types import Missing
from verifier.families.samples import Sample
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Opened
from verifier.ladder.gather import Traced, choose_samples, run_traced
from verifier.ladder.trace import UntracedError
from verifier.measures.cache_rows import measure_rows
from verifier.measures.evidence import Part, unasked
from verifier.measures.kvcache import ask_cache
from verifier.measures.probes import CacheEvidence, Speed, ThreadEvidence
from verifier.measures.speed import ask_speed
from verifier.measures.threads import ask_threads
from verifier.runner.protocol import Array, Bundle, Result

P = ParamSpec("P")
R = TypeVar("R")


def probe_cache(opened: Opened, parts: frozenset[Part], image: Array) -> CacheEvidence:
    """Histories, poison and rows of the cache; the whole cache in chunks if a check needs it."""
    return ask_cache(
        opened.artifact,
        opened.caller,
        opened.family.embedding_table().numpy(),
        image,
        partial(run_bundle, opened.runner),
        measure=partial(measure_rows, rope_theta=opened.checkpoint.geometry.text.rope_theta),
        in_chunks=Part.CHUNKS in parts,
        large=opened.family.large,
    )


def repeat(opened: Opened, table: Tensor, image: Array) -> ThreadEvidence:
    """The same calls, repeated and with several thread counts."""
    return ask_threads(
        opened.artifact,
        opened.caller,
        table.numpy(),
        image,
        partial(run_bundle, opened.runner),
        large=opened.family.large,
    )


def measure_speed(opened: Opened, table: Tensor, image: Array) -> Speed:
    """Time and memory of a conversation; whoever asks is alone on the machine."""
    return ask_speed(
        opened.artifact,
        opened.caller,
        table.numpy(),
        image,
        partial(run_bundle, opened.runner),
        patches=opened.family.patches,
        large=opened.family.large,
    )


@dataclass(frozen=True)
class Children:
    """Runs of the program beside this process, of the parts that are needed."""

    pool: ThreadPoolExecutor
    parts: frozenset[Part]

    def submit(
        self, part: Part, what: str, work: Callable[P, R], *given: P.args, **named: P.kwargs
    ) -> Future[R | Missing]:
        """Start some work, or say that no check asked for what it gives."""
        if part in self.parts:
            return cast("Future[R | Missing]", self.pool.submit(work, *given, **named))
        absent: Future[R | Missing] = Future()
        absent.set_result(unasked(what))
        return absent


@contextmanager
def one_core_for_children() -> Iterator[None]:
    """Leave a core to the program under test: OpenMP's threads wait for each other, and lose more than they win (a tenth)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def converse(opened: Opened, parts: frozenset[Part], bundle: Bundle) -> Result:
    """The golden conversations, if a check needs them; else no call at all, for those who want to know what ran: operators, versions, CPU
    features. A device tells which instructions its kernels are made of once some were chosen: the encoder, a lookup, and a first chunk of text."""
    if Part.CONVERSATIONS not in parts:
        bundle = replace(bundle, calls=bundle.calls[:3] if Part.INSTRUCTIONS in parts else ())
    return run_bundle(opened.runner, bundle)


def trace(opened: Opened, samples: list[Sample], folder: Path) -> Traced | Missing:
    """The traced conversations of some of the samples; their traces lie in `folder`."""
    patches, large = opened.family.patches, opened.family.large
    chosen = choose_samples(samples, large=large)
    try:
        return run_traced(opened.artifact, opened.caller, chosen, opened.runner, folder, patches=patches, large=large)
    except UntracedError as error:
        return Missing(error.one_line, "verifier")
