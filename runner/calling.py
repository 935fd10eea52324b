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
        (image,), (ids,), (embeddings, position) = (
            _inputs(program, method) for method in ("vision_encoder", "token_embedding", "text_decoder")
        )
    except (RuntimeError, ValueError) as error:
        raise RunnerError("the program is not a LLaVA", got=error) from error
    (pixels, frame), (_, text), (_, chunk), (_, positions) = image, ids, embeddings, position
    normalized = pixels == FLOAT and len(frame) == 4
    known = normalized or (pixels == BYTE and len(frame) == 3)
    if not known or len(text) != 2 or len(chunk) != 3 or len(positions) != 1:
        raise RunnerError("the calling convention of the program is not known", got=[image, ids, embeddings, position])
    return Calling(frame[-1] if normalized else 0, positions != (1,), min(text[1], chunk[1]))


def _inputs(program: Any, method: str) -> list[tuple[int, tuple[int, ...]]]:
    meta = program.method_meta(method)
    tensors = (meta.input_tensor_meta(number) for number in range(meta.num_inputs()))
    return [(tensor.dtype(), tuple(tensor.sizes())) for tensor in tensors]
