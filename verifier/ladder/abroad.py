"""The same calls on this machine, where the program ran on another one: how far two architectures are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.artifact.program import Artifact
from verifier.errors import VerifierError
from verifier.families.conventions import DECODER, ENCODER
from verifier.ladder.blocks import TracedCall
from verifier.runner.protocol import Array, Bundle, Call, Runner

TIMEOUT_S = 3600.0
COMPARED = (ENCODER, DECODER)
"""Methods whose outputs are computed; `token_embedding` looks up."""


@dataclass(frozen=True)
class Counterpart:
    """The output of one call there and here, on the very same inputs."""

    method: str
    call: int
    there: Array
    here: Array


def run_here(artifact: Artifact, calls: tuple[TracedCall, ...], host: Runner) -> tuple[Counterpart, ...]:
    """Repeat traced calls on this machine, each with the inputs that it had there. The caches follow: they are filled by the
    same calls. Raises `VerifierError` if the program does not get through here."""
    repeated = tuple(Call(call.method, tuple(np.array(x) for x in call.inputs)) for call in calls)
    result = host.run(Bundle(artifact.path, repeated), timeout_s=TIMEOUT_S)
    if result.outcome != "ok":
        raise VerifierError("the program does not run on this machine", got=f"{result.outcome}: {result.message}")
    return tuple(
        Counterpart(call.method, number, call.output.numpy(), result.outputs[number])
        for number, call in enumerate(calls)
        if call.method in COMPARED
    )
