"""What the runners in Python and in C++ have to agree on. The C++ one reads `native/src/constants.hpp`, which
`python -m verifier.runner.constants` writes from this file; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path

BUNDLE_SCHEMA = "runner.bundle/5"
BUNDLE_FILE = "bundle.txt"
RESULT_FILE = "result.json"
PLACE_FILE = "at.txt"
"""The number of the call that runs, for whoever finds the process dead."""
ETDUMP_FILE = "trace.etdp"
BUFFER_FILE = "trace.bin"
IMAGE_ENTRY = "image.npy"
"""An image that is TorchScript, `.pt`, has the plain array too, under this name in its folder `extra`."""

SESSION_SCHEMA = "verifier.session/1"
"""Of a recorded session."""

LOOP = "@loop"
"""Not a method of the program: a fixed piece of arithmetic in the runner's own process, by whose time that of a call is measured.
It takes no inputs and returns nothing."""
LOOP_SIDE = 256
LOOP_TIMES = 8
"""The loop multiplies fp32 matrices of this side, this many times, on one thread."""

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's: what a program that takes normalized pixels is given; all others subtract and divide inside. A test compares them with the family's."""

SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions. "
)
BEFORE_IMAGE = SYSTEM + "USER: "
"""The conversation of LLaVA-1.5 up to the image."""

FRAME_PX = 336
"""What a picture's longer side becomes: LLaVA-1.5's frame, as `python -m verifier.image_util` has it."""
PICTURE_LIMIT_BYTES = 512 << 20
PICTURE_LIMIT_PIXELS = 64 << 20
PICTURE_LIMIT_ASPECT = 168
"""Of a picture that the C++ runner reads; a test compares them with `families/pixels/image_file.py`."""

FILE_LIMIT_BYTES = 64 << 20
"""Of a tokenizer file: tokenizer.json of a vocabulary of 256,000 pieces has 33 MB."""
VOCABULARY_LIMIT = 1 << 20
PIECE_LIMIT_BYTES = 1 << 12
ID_LIMIT = 1 << 24
FIRST_BYTE = 3
"""In `tokenizer.bin` ids 3 to 258 stand for single bytes, as ExecuTorch's reader has it."""

HEADER = Path(__file__).parent / "native" / "src" / "constants.hpp"


def header() -> str:
    """The C++ header: every constant of this module, `BUNDLE_FILE` as `kBundleFile`."""
    lines = ["// Written by `python -m verifier.runner.constants` from runner/constants.py: change it there."]
    lines += ["#pragma once", "", "#include <cstdint>", "", "namespace runner {", ""]
    for name, value in globals().items():
        if name.isupper() and isinstance(value, str | int):
            kind = "const char*" if isinstance(value, str) else "int64_t"
            lines.append(f"constexpr {kind} {_spelled(name)} = {json.dumps(value)};")
        elif name.isupper() and isinstance(value, tuple):
            lines.append(f"constexpr float {_spelled(name)}[] = {{{', '.join(f'{number}f' for number in value)}}};")
    return "\n".join([*lines, "", "} // namespace runner", ""])


def _spelled(name: str) -> str:
    return "k" + "".join(word.capitalize() for word in name.split("_"))


if __name__ == "__main__":
    HEADER.write_text(header())
