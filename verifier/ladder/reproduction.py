"""What a wrong kernel is reported with: one delegate cut behind its first wrong node, its inputs, and what is right.

The folder is a bundle: `python -m verifier.runner FOLDER --target T` carries it out anywhere and says how far off the answer is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from verifier.core.errors import UsageError
from verifier.runner.bundle import save_bundle
from verifier.runner.protocol import Bundle, Call
from verifier.runner.result import expected_path, save_array

PROGRAM, TEXT = "node.pte", "README.md"


def save_reproduction(
    folder: Path, program: bytes, node: int, inputs: list[Tensor], *, expected: Tensor, said: str
) -> None:
    """Write program, inputs, expected output and a few words. Raises `UsageError` if the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROGRAM).write_bytes(program)
        given = tuple(np.array(x.numpy(), order="C") for x in inputs)
        save_bundle(Bundle(folder / PROGRAM, (Call(f"node_{node}", given),)), folder)
        save_array(expected.numpy(), expected_path(folder, 0))
        (folder / TEXT).write_text(_text(node, said), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            "the reproduction cannot be written", got=error, where=folder, fix="check the space"
        ) from error


def _text(node: int, said: str) -> str:
    return f"""# A kernel that differs from its program

{said}

`{PROGRAM}` has one method, `node_{node}`: the delegate up to that node, with the program's own constants. `bundle.txt` calls it
on the inputs that the runtime had (`in_00000_*.npy`); `expected_00000.npy` is what plain arithmetic gives.

    python -m verifier.runner . --target local          # or native, qemu:cortex-a76, ssh:board
    llava_main --bundle=. --result=FOLDER      # the C++ runner alone: compare FOLDER/00000.npy
"""
