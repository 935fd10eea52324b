"""How `llava_main` calls a program, by what its methods declare: `native/src/calling.cpp` is the same in C++.

The conventions are those of `verifier/families/conventions.py`: ExecuTorch's own LLaVA, and optimum-executorch's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from verifier.core.errors import RunnerError
from verifier.runner.constants import PIXEL_MEAN, PIXEL_STD

BYTE, LONG, FLOAT = 0, 4, 6
"""ExecuTorch's numbers of dtypes."""
_TEXT = {"token_embedding": ((LONG, 2),), "text_decoder": ((FLOAT, 3), (LONG, 1))}
KINDS = tuple({"vision_encoder": (picture,)} | _TEXT for picture in ((BYTE, 3), (FLOAT, 4)))
"""Dtype and number of dimensions of the inputs of each method, of programs that take bytes and of those that take normalized pixels."""


@dataclass(frozen=True)
class Calling:
    """`side_px` of the frame of normalized pixels, 0 for a program that takes bytes; whether `each` token is given its position, or a chunk the
    one of its start; tokens of `text` that one call takes."""

    side_px: int
    each: bool
    text: int

    def image(self, picture: Any) -> Any:
        """What `vision_encoder` is given for a picture uint8 [3, h, w]: the picture, or fp32 [1, 3, H, H], centred on black and normalized.
        Raises `RunnerError` for a picture that is larger than the frame."""
        if not self.side_px:
            return picture
        import torch

        height, width = picture.shape[1:]
        if max(height, width) > self.side_px:
            raise RunnerError("the image is too large", got=[height, width], expected=f"at most {self.side_px} px")
        top, left = (self.side_px - height) // 2, (self.side_px - width) // 2
        frame = torch.zeros(3, self.side_px, self.side_px)
        frame[:, top : top + height, left : left + width] = picture
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        return ((frame * (1 / 255) - mean) / std).unsqueeze(0)

    def positions(self, start: int, tokens: int) -> Any:
        """What `text_decoder` is given as the positions of a chunk: int64 [1] or [S]."""
        import torch

        return torch.arange(start, start + (tokens if self.each else 1))


def read_calling(program: Any) -> Calling:
    """From the inputs that a program declares. Raises `RunnerError` for a convention that is not known, and for a program that is no LLaVA."""
    try:
        inputs = {method: _inputs(program, method) for method in KINDS[0]}
    except (RuntimeError, ValueError) as error:
        raise RunnerError("the program is not a LLaVA", got=error) from error
    kinds = {method: tuple((dtype, len(sizes)) for dtype, sizes in given) for method, given in inputs.items()}
    if kinds not in KINDS:
        shown = (f"{method}({', '.join(map(_shown, given))})" for method, given in inputs.items())
        raise RunnerError("the calling convention of the program is not known", got=", ".join(shown))
    ((_, frame),), ((_, ids),), ((_, embeddings), (_, positions)) = inputs.values()
    return Calling(frame[-1] if len(frame) == 4 else 0, positions != (1,), min(ids[1], embeddings[1]))


Tensor = tuple[int, tuple[int, ...]]
"""A dtype, and sizes: their upper bounds if they are dynamic."""


def _inputs(program: Any, method: str) -> list[Tensor]:
    meta = program.method_meta(method)
    tensors = (meta.input_tensor_meta(number) for number in range(meta.num_inputs()))
    return [(tensor.dtype(), tuple(tensor.sizes())) for tensor in tensors]


def _shown(tensor: Tensor) -> str:
    dtype, sizes = tensor
    return f"{({BYTE: 'BYTE', LONG: 'LONG', FLOAT: 'FLOAT'}).get(dtype, f'dtype {dtype}')}{list(sizes)}"
