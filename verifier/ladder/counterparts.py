"""The same calls on this machine, where the program ran on another one: how far two architectures are apart."""

from __future__ import annotations

import numpy as np

from verifier.artifact.program import Artifact
from verifier.core.compare import Mismatch, compare
from verifier.core.errors import VerifierError
from verifier.ladder.blocks import TracedCall
from verifier.ladder.evidence import COMPARED, Counterpart
from verifier.runner.protocol import Array, Bundle, Call, Runner

TIMEOUT_S = 3600.0


def counterpart(method: str, call: int, *, there: Array | None, here: Array | None) -> Counterpart:
    """The outputs of one call on two machines, compared."""
    made = compare(actual=there, expected=here)
    return Counterpart(method, call, made if isinstance(made, Mismatch) else made.sqnr_db)


def run_here(artifact: Artifact, calls: tuple[TracedCall, ...], host: Runner) -> tuple[Counterpart, ...]:
    """Repeat traced calls on this machine, each with the inputs that it had there. The caches follow: they are filled by the
    same calls. Raises `VerifierError` if the program does not get through here."""
    repeated = tuple(Call(call.method, tuple(np.array(x) for x in call.inputs)) for call in calls)
    result = host.run(Bundle(artifact.path, repeated), timeout_s=TIMEOUT_S)
    if result.outcome != "ok":
        raise VerifierError("the program does not run on this machine", got=f"{result.outcome}: {result.message}")
    return tuple(
        counterpart(call.method, number, there=call.output.numpy(), here=result.outputs[number])
        for number, call in enumerate(calls)
        if call.method in COMPARED
    )
