"""Run faults, each in a process of its own: inject it, run the gate's command line, keep what it said.

The parent imports everything once and answers the golden images in fp32 once; children are forked from it. That reference is
found again by the bytes of image, prompt and answer, so that a fault which changes one of them gets its own.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from verifier import pipeline
from verifier.checks.registry import CHECKS
from verifier.commands.verify import main as gate
from verifier.core.errors import ArtifactError, VerifierError
from verifier.core.records import JsonObject
from verifier.families.definition import Definition
from verifier.families.family import Family
from verifier.families.samples import Answered, Sample
from verifier.faults import today
from verifier.faults.fault import FAILED, Fault, Work, patch
from verifier.gather import schedule as gathering
from verifier.gather.second_look import QuantizedRung
from verifier.measures.against_fp32 import LayerError
from verifier.measures.evidence import Evidence
from verifier.measures.mapping import MAPPING_SAMPLES

LIMIT_S = 900.0
ONE = "wide_0*"
"""The golden image whose conversation is followed layer by layer: it is not square, so its margins are made in the program."""
_OURS = 70
"""Exit status of a child whose injection failed: a matter of the bench, never an answer of the gate."""


@dataclass(frozen=True)
class Outcome:
    """What the gate said to one fault. `place` is what the right place is looked for in; `check` the blamed one, `others` how many
    further checks failed; `today` which of today's checks the artifact passes, None if it never ran or was not itself changed; `no_place` why the fault
    cannot be injected into another exporter's program, which has no such part."""

    fault: str
    status: int
    check: str = ""
    step: str = ""
    place: str = ""
    others: int = 0
    message: str = ""
    wall_s: float = 0.0
    today: dict[str, bool] | None = None
    problem: str = ""
    no_place: str = ""
    failed: tuple[str, ...] = field(default=())

    @classmethod
    def read(cls, saved: JsonObject) -> Outcome:
        """From the JSON that `asdict` became."""
        return cls(**(saved | {"failed": tuple(saved["failed"])}))

    def found(self, fault: Fault) -> bool:
        """Whether the gate said no, in the way that it should."""
        return not self.problem and self.status == fault.status

    def right_step(self, fault: Fault) -> bool:
        """Whether the blamed step is the right one; a refusal has none."""
        return self.found(fault) and (fault.status != FAILED or self.step in fault.steps)

    def right_place(self, fault: Fault) -> bool:
        """Whether the blamed place is the right one."""
        return self.found(fault) and re.search(fault.place, self.place) is not None


@dataclass(frozen=True)
class Subject:
    """A clean program with its checkpoint, and what the gate's command line needs for it."""

    pte: Path
    model: Path
    arguments: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    """Globs of a few golden images."""
    foreign: bool = False
    """Made by another exporter: not every fault has a place in it."""


class _Memory:
    """fp32 references by the bytes that they were made from."""

    def __init__(self) -> None:
        self._kept: JsonObject = {}
        self._answer: Any = None
        self._mapping: Any = None

    def install(self) -> None:
        """From here on gathering asks here first."""
        if self._answer is None:
            self._answer = patch(gathering, "answer_samples", self.answers)
            self._mapping = patch(gathering, "measure_mapping", self.mapping)

    def answers(self, definition: Definition, samples: list[Sample]) -> list[Answered]:
        """As `answer_samples`."""
        made: list[Answered] = []
        for sample in samples:
            key = self._key("answer", definition, sample)
            if key not in self._kept:
                self._kept[key] = self._answer(definition, [sample])[0]
            made.append(self._kept[key])
        return made

    def mapping(
        self, family: Family, definition: Definition, samples: list[Sample]
    ) -> dict[str, tuple[LayerError, ...]]:
        """As `measure_mapping`."""
        key = "".join(self._key("mapping", definition, sample) for sample in samples[:MAPPING_SAMPLES])
        if key not in self._kept:
            self._kept[key] = self._mapping(family, definition, samples)
        made: dict[str, tuple[LayerError, ...]] = self._kept[key]
        return made

    def _key(self, what: str, definition: Definition, sample: Sample) -> str:
        digest = hashlib.sha256(sample.image.tobytes())
        digest.update(b"" if sample.pixels is None else sample.pixels.tobytes())
        digest.update(repr((what, sample.image.shape, sample.prompt, sample.golden.ids)).encode())
        digest.update(definition.embedding.numpy().tobytes())
        return digest.hexdigest()


MEMORY = _Memory()


def prepare(subject: Subject) -> None:
    """Compute the references of a clean subject in this process, and keep them. Raises `VerifierError` if they cannot be made."""
    MEMORY.install()
    status = gate([str(subject.pte), "--quiet", "--checks", "mapping.*,preprocess.*", *subject.arguments])
    if status != 0:
        raise VerifierError("the clean program has no references that hold", got=status, where=subject.pte)


def sound(name: str) -> Fault:
    """No fault at all: the gate's whole run on a clean subject, which has to pass for anything to be learnt from faults."""
    return Fault(f"sound-{name}", "clean", (), "the clean program", (), "", lambda work: None, subject=name, status=0)


def run_faults(
    faults: Sequence[Fault],
    subjects: dict[str, Subject],
    folder: Path,
    *,
    workers: int,
    quick: bool = False,
    whole: bool = False,
) -> Iterator[Outcome]:
    """Outcomes as they come, `workers` at a time. `whole` makes all checks of every fault, `quick` those that the fault names."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(faults), dict[str, tuple[ForkProcess, float]]()
    while waiting or running:
        while waiting and len(running) < workers:
            one = waiting.pop(0)
            process = context.Process(target=_child, args=(one, subjects[one.subject], folder / one.name, quick, whole))
            process.start()
            running[one.name] = process, time.monotonic()
        for name, (process, begun) in list(running.items()):
            process.join(0.2)
            if process.is_alive() and time.monotonic() - begun < LIMIT_S:
                continue
            process.kill()
            process.join()
            del running[name]
            yield _outcome(name, folder / name)
            shutil.rmtree(folder / name, ignore_errors=True)


def _outcome(name: str, folder: Path) -> Outcome:
    path = folder / "outcome.json"
    if not path.is_file():
        return Outcome(name, _OURS, problem=f"no answer within {LIMIT_S:g} s, or the process died")
    return Outcome.read(json.loads(path.read_text()))


def _child(fault: Fault, subject: Subject, folder: Path, quick: bool, whole: bool) -> None:
    folder.mkdir(parents=True)
    with (folder / "said").open("w") as said, redirect_stdout(said), redirect_stderr(said):
        try:
            outcome = _injected(fault, subject, folder, quick=quick, whole=whole)
        except BaseException:
            outcome = Outcome(fault.name, _OURS, problem=traceback.format_exc(limit=-6))
    (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))
    os._exit(0)


def _is_unchanged(work: Work, subject: Subject) -> bool:
    return work.model == subject.model and work.pte.read_bytes() == subject.pte.read_bytes()


def _injected(fault: Fault, subject: Subject, folder: Path, *, quick: bool, whole: bool) -> Outcome:
    begun = time.monotonic()
    work = Work(folder, Path(shutil.copy(subject.pte, folder / "llava.pte")), subject.model)
    try:
        fault.inject(work)
    except (ArtifactError, KeyError, IndexError, StopIteration) as error:
        if not subject.foreign:
            raise
        return Outcome(
            fault.name,
            _OURS,
            no_place=f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}".strip(),
        )
    if fault.kind == "bytes" and subject.foreign and _is_unchanged(work, subject):
        return Outcome(fault.name, _OURS, no_place="what it changes is the same there")
    kept: list[Evidence] = []

    def gather(*given: Any) -> tuple[Evidence, QuantizedRung]:
        evidence, quantized = gathered(*given)
        kept.append(evidence)
        return evidence, quantized

    gathered = patch(pipeline, "gather", gather)
    words = [str(work.pte), "--quiet", "--json", str(folder / "report.json"), *subject.arguments, *work.arguments]
    words += [] if work.model == subject.model else ["--model", str(work.model)]
    held: dict[str, bool] | None = None
    status, report = 0, None
    stages = _stages(fault, subject, quick=quick, whole=whole)
    for stage in stages[1 if work.traced_only and len(stages) > 1 else 0 :]:  # the first one looks at no trace
        (folder / "report.json").unlink(missing_ok=True)
        status = gate([*words, *stage])
        report = _report(folder / "report.json")
        if kept and kept[-1].cases and held is None and not (quick or work.traced_only or fault.kind == "clean"):
            held = today.passes(kept[-1])
        if report is None or status == FAILED:
            break
    sys.stdout.flush()
    sys.stderr.flush()
    wall_s = time.monotonic() - begun
    if report is None:
        said = (folder / "said").read_text()[-1500:]
        message = said.splitlines()[0] if said else ""
        return Outcome(fault.name, status, place=said, message=message, wall_s=wall_s, today=held)
    return _read(fault.name, status, report, wall_s, held)


def _stages(fault: Fault, subject: Subject, *, quick: bool, whole: bool) -> tuple[list[str], ...]:
    """Arguments of the gate, cheapest checks first: what runs nothing but a few conversations; layer by layer; everything.

    The gate blames the first check that fails, in the order of its registry, and no check looks at another one. So the first
    stage that fails blames what the whole gate blames; a stage with a few images that passes proves nothing, and the next one
    is made.
    """
    few = ["--images", ",".join(subject.few)] if subject.few else []
    if fault.kind == "clean":
        return (["--checks", fault.quick] if fault.quick else [],)
    if quick:
        return (["--checks", fault.quick, *few],)
    if whole:
        return ([],)
    ids = [check.id for check in CHECKS if not check.id.startswith("device.")]
    audited = max(number for number, id in enumerate(ids) if id.startswith("weights.")) + 1
    replayed = ids.index("structure.manifest") + 1
    first, second = (["--checks", ",".join(part)] for part in (ids[:audited], ids[audited:replayed]))
    return [*first, *few], [*second, "--images", ONE], []


def _report(path: Path) -> JsonObject | None:
    if not path.is_file():
        return None
    read: JsonObject = json.loads(path.read_text())
    return read


def _read(name: str, status: int, report: JsonObject, wall_s: float, held: dict[str, bool] | None) -> Outcome:
    failed = [check for check in report["checks"] if check["verdict"] == "fail"]
    if not failed:
        odd = [check for check in report["checks"] if check["verdict"] == "error"]
        message = f"{odd[0]['id']} {odd[0]['case']}: {odd[0]['message']}" if odd else ""
        return Outcome(name, status, message=message, wall_s=wall_s, today=held)
    blamed = failed[0]
    where = blamed["where"] or {}
    place = " ".join(str(where.get(key) or "") for key in ("method", "module", "index", "instruction"))
    ids = tuple(dict.fromkeys(check["id"] for check in failed))
    return Outcome(
        fault=name,
        status=status,
        check=blamed["id"],
        step=blamed["step"],
        place=f"{place} {blamed['case']} {blamed['message']}",
        others=len(ids) - 1,
        message=f"{blamed['case']}: {blamed['message']}",
        wall_s=wall_s,
        today=held,
        failed=ids,
    )
