"""A prepared image as a file that runners read, uint8 [3, h, w].

`.pt` is TorchScript (a module whose one parameter "0" is the tensor, as ExecuTorch's own script writes it); `.npy` needs
no PyTorch to read.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verifier.core.errors import UsageError
from verifier.core.files import replacing
from verifier.runner.constants import IMAGE_ENTRY

SUFFIXES = (".pt", ".npy")


class _Holder(nn.Module):
    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.register_parameter("0", nn.Parameter(image, requires_grad=False))

    def forward(self) -> None:
        return None


def check_suffix(path: Path) -> None:
    """Raise `UsageError` for an output that is neither `.pt` nor `.npy`."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            "unknown image format",
            got=path.name,
            expected="a name that ends in .pt or .npy",
            fix="change --output-path",
        )


def save_image_tensor(image: Tensor, path: Path) -> None:
    """Write uint8 [3, h, w] to `.pt` or `.npy`, whole or not at all."""
    check_suffix(path)
    with replacing(path) as temporary:
        if path.suffix == ".pt":
            plain = io.BytesIO()
            np.save(plain, image.numpy(), allow_pickle=False)
            # the same array once more, stored as it is: llava_main in C++ reads that one
            torch.jit.script(_Holder(image)).save(str(temporary), _extra_files={IMAGE_ENTRY: plain.getvalue()})  # type: ignore[no-untyped-call]
        else:
            with temporary.open("wb") as file:
                np.save(file, image.numpy(), allow_pickle=False)
