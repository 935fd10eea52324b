"""A fault: what is wrong, how it is put into a sound artifact or its use, and what the gate has to say about it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from verifier.artifact.plan import Plan
from verifier.artifact.program import Artifact, open_artifact
from verifier.audit.inventory import Constant
from verifier.core.errors import VerifierError
from verifier.core.types import Step
from verifier.families.checkpoint import Checkpoint
from verifier.families.registry import open_checkpoint
from verifier.faults.lowered import reuse
from verifier.faults.surgery import change_bytes, find_constants
from verifier.runner.protocol import Array

Kind = Literal["bytes", "recipe", "use", "clean"]
KINDS: tuple[Kind, ...] = ("bytes", "recipe", "use")
FAILED, NOT_VERIFIED = 1, 2


@dataclass
class Work:
    """What an injection works on: a copy `pte` of a clean program without its manifest, and the checkpoint in `model`. It may
    change both, patch modules of this process for good, and add arguments to the gate's command line."""

    folder: Path
    pte: Path
    model: Path
    arguments: list[str] = field(default_factory=list)
    traced_only: bool = False
    """Whether nothing but the trace of the runtime is changed."""

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint."""
        return open_checkpoint(str(self.model))

    @cached_property
    def clean(self) -> Artifact:
        """The program as it was before it was wounded."""
        return open_artifact(self.pte)

    @property
    def decoder(self) -> Plan:
        """The decoder's plan."""
        return self.clean.plans["text_decoder"]

    @cached_property
    def constants(self) -> dict[str, Constant]:
        """The constant that holds each parameter, by `method.parameter`."""
        self.clean  # noqa: B018  read before the file is changed
        return find_constants(self.pte, self.checkpoint)

    def edit(self, parameter: str, change: Callable[[Array], Array]) -> None:
        """Replace a parameter's stored bytes (uint8) by what `change` makes of them."""
        place = self.constants[parameter].value.constant
        assert place is not None
        change_bytes(self.pte, place, change)

    def edit_scales(self, parameter: str, change: Callable[[Array], Array]) -> None:
        """The same for the scales of a 4-bit linear's groups: bf16 [N, G], given as uint16."""
        quantization: Any = self.constants[parameter].quantization or self.constants[parameter].value
        scales = getattr(quantization, "quantization", quantization).scales
        change_bytes(self.pte, scales, lambda raw: change(raw.view("<u2").copy()))

    def export(self, patch: Callable[[], None], *arguments: str, only: str = "") -> None:
        """Export the checkpoint anew into `pte` in a process of its own, in which `patch` has changed what it likes. If that is
        one method's matter, `only` names it, and the others are taken from the sound export where the bench has kept them.

        Raises `VerifierError` if that fails: a fault that cannot be exported is none.
        """
        from verifier.commands.export import main

        child = os.fork()
        if child == 0:
            status = 70
            try:
                if only:
                    reuse(self.model, only)
                patch()
                status = main(["--pte-name", str(self.pte), "--model", str(self.model), "--quiet", *arguments])
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(ended) != 0:
            raise VerifierError("the faulty export failed", got=os.waitstatus_to_exitcode(ended), where=self.pte)
        self.pte.with_suffix(".manifest.json").unlink(missing_ok=True)

    def own_model(self) -> Path:
        """From here on the gate gets a copy of the checkpoint, which may be changed."""
        if self.model.parent != self.folder:
            skipped = shutil.ignore_patterns("*.pte", "*.manifest.json", "make", "calibration", "__pycache__")
            self.model = Path(shutil.copytree(self.model, self.folder / self.model.name, ignore=skipped))
        return self.model


def patch(owner: Any, name: str, value: Any) -> Any:
    """Let an attribute of a module or class be another one, in this process and for good; what it was."""
    right = getattr(owner, name)
    setattr(owner, name, value)
    return right


Inject = Callable[[Work], None]


@dataclass(frozen=True)
class Fault:
    """One fault. `rows` are the numbers of the faults in the field that it stands for (docs/faults.md lists them).

    The right answer: one of `steps`, and `place`, a regular expression that the blamed place matches (`method module index`,
    then case and message); with `status` 2 the file is refused, and `place` is in the refusal; with 0 nothing is wrong. `quick` are
    the checks that a quick run makes, if the fault is part of it, and those that a clean artifact goes through.
    """

    name: str
    kind: Kind
    rows: tuple[int, ...]
    text: str
    steps: tuple[Step, ...]
    place: str
    inject: Inject
    subject: str = "tiny"
    status: int = FAILED
    quick: str = ""
    slow: bool = False


def fault(
    kind: Kind,
    text: str,
    *,
    step: Step | tuple[Step, ...],
    place: str,
    rows: tuple[int, ...] = (),
    subject: str = "tiny",
    status: int = FAILED,
    quick: str = "",
    slow: bool = False,
) -> Callable[[Inject], Fault]:
    """Make a fault of the function that injects it; the function's name is the fault's."""

    def made(inject: Inject) -> Fault:
        steps = (step,) if isinstance(step, str) else step
        name = inject.__name__.replace("_", "-")
        return Fault(name, kind, rows, text, steps, place, inject, subject, status, quick, slow)

    return made
