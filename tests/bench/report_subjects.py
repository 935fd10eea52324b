"""`python -P tests/bench/report_subjects.py FOLDER NAME…`: make the artifacts whose reports `tests.bench.reports` compares.

The script runs with an earlier commit's `verifier` on the module path, so it imports nothing of this tree. For each name it writes
FOLDER/NAME with the artifact's files and `arguments.json`, the command line of the gate.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

EMBEDDED_PTE = "golden/llava_tiny/llava_tiny.pte"
"""Of the tree that judges it: this file is what the two trees share."""
RANDOM = ("random-calibrated", "random-seed-1")
FAULTS = (
    "one-nibble",
    "two-heads-swapped",
    "keys-into-another-cache",
    "no-special-tokens",
    "nan-weight",
    "swapped-in-shipped-tokenizer",
    "one-group-scale",
    "one-embedding-scale",
    "epsilon-of-norms",
    "rope-row-700",
    "std-not-fully-loaded",
    "cache-over-scratch",
    "class-token-last",
    "another-eos",
    "zero-point-misread",
    "gate-for-up",
    "quick-gelu-for-gelu",
    "one-end-of-two",
    "leftover-quantization",
    "shipped-tokenizer-of-metaspace",
)
"""Faults that leave nothing but changed files, from in_constants, in_program, in_recipe, in_checkpoint and in_tokenizer."""
NAMES = ("llava_tiny", *RANDOM, *FAULTS)
QUICK = ("llava_tiny", *FAULTS[:4])
ONE_IMAGE = "wide_0*"


def _write(folder: Path, words: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "arguments.json.part"
    temporary.write_text(json.dumps(words, indent=1) + "\n")
    temporary.replace(folder / "arguments.json")


def _random(root: Path, name: str) -> None:
    from verifier.faults.subjects import make_calibrated_model, make_micro_model

    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run left
    folder.mkdir(parents=True)
    pte = make_calibrated_model(folder) if name == RANDOM[0] else make_micro_model(folder, seed=1)
    (folder / "program").mkdir()  # apart from the checkpoint's tokenizer, which is not the one that ships
    program = shutil.copy(pte, folder / "program")
    _write(folder, [str(program), "--model", str(folder)])


def _fault(root: Path, name: str) -> None:
    """The faulty artifact, and the checks of the first two stages of the bench: those that need one conversation at most."""
    from verifier.checks.registry import CHECKS
    from verifier.families.checkpoint import EMBEDDED
    from verifier.faults.catalogue import FAULTS as CATALOGUE
    from verifier.faults.fault import Work

    fault = next(fault for fault in CATALOGUE if fault.name == name)
    model = EMBEDDED if fault.subject == "tiny" else root / RANDOM[0]
    clean = EMBEDDED / "llava_tiny.pte" if fault.subject == "tiny" else model / "model.pte"
    if fault.subject != "tiny" and not (model / "arguments.json").is_file():
        _random(root, RANDOM[0])
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    work = Work(folder, Path(shutil.copy(clean, folder / "llava.pte")), model)
    fault.inject(work)
    ids = [check.id for check in CHECKS if not check.id.startswith("device.")]
    checks = ids[: ids.index("structure.manifest") + 1]
    own = [] if work.model == EMBEDDED else ["--model", str(work.model)]
    _write(folder, [str(work.pte), "--checks", ",".join(checks), "--images", ONE_IMAGE, *own, *work.arguments])


def _make(root: Path, name: str) -> None:
    if name in RANDOM:
        _random(root, name)
    elif name in FAULTS:
        _fault(root, name)
    else:
        _write(root / name, [EMBEDDED_PTE])


def main(root: Path, names: list[str]) -> int:
    """Make each artifact in a process of its own, as an injection may change modules; a model in this one, which keeps its lowered methods."""
    import torch

    torch.set_num_threads(1)  # children are forked, and do not inherit the threads of OpenMP
    for name in names:
        print(f"making {name}", file=sys.stderr, flush=True)
        if name in RANDOM:
            _make(root, name)
        elif (child := os.fork()) == 0:
            status = 70
            try:
                _make(root, name)
                status = 0
            finally:
                os._exit(status)
        elif os.waitpid(child, 0)[1] != 0:
            print(f"{name} could not be made", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
