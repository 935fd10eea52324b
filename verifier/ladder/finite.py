"""Where values that are no numbers come from: the first instruction that makes NaN or infinity of numbers.

An instruction whose operands hold no NaN must give none. Infinity is legitimate only as a mask: zeros and -inf, from a constant or a number of
the program, added before a softmax, and in what is computed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor

from verifier.artifact.plan import Instruction, TensorValue
from verifier.interpret.machine import MethodState
from verifier.ladder.records import NonFinite


def all_finite(x: Tensor) -> bool:
    """Whether a floating-point tensor holds numbers alone."""
    # the sum of finite numbers may overflow: only its finiteness proves something
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def non_finite(result: Tensor, computed: Iterable[Any], given: Callable[[], list[Any]]) -> NonFinite | None:
    """What a result holds that is no number; None if nothing. `computed` are operands that were computed, or given by the caller; `given`
    fetches the instruction's constants and numbers."""
    if not result.is_floating_point() or all_finite(result):
        return None
    nan = bool(result.isnan().any())
    places = result.isnan() if nan else result.isinf()
    flat = int(places.reshape(-1).to(torch.int8).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), result.shape)) if result.dim() else ()
    constants = given()
    inherited = any(has_nan(x) if nan else not all_finite(x) for x in computed if _is_float(x))
    return NonFinite(
        float(result.reshape(-1)[flat]),
        index,
        int(places.sum()),
        inherited=inherited,
        masks=not nan and any(_is_mask(x) for x in constants),
        constant=any(_is_float(x) and not all_finite(x) for x in constants),
    )


def has_nan(x: object) -> bool:
    """Whether a value is a tensor with NaN in it."""
    return _is_float(x) and not all_finite(x) and bool(x.isnan().any())


def is_finite(x: object) -> bool:
    """Whether a value is anything but a tensor with NaN or infinity in it."""
    return all_finite(x) if _is_float(x) else True


def _is_float(x: object) -> TypeGuard[Tensor]:
    return isinstance(x, Tensor) and x.is_floating_point()


def _is_mask(x: object) -> bool:
    """Zeros and -inf, at least one of them -inf; or the number -inf, which a kernel fills with."""
    if isinstance(x, float):
        return x == float("-inf")
    if not _is_float(x):
        return False
    masked = x == float("-inf")
    return bool(masked.any()) and bool((masked | (x == 0)).all())


def constants_of(state: MethodState, instruction: Instruction, operands: dict[int, Any]) -> list[Any]:
    """The constants and numbers that an instruction uses; of a delegate, those of its graph, scales included."""
    found = [x for index, x in operands.items() if not is_computed(state, index)]
    if instruction.kind != "delegate":
        return found
    return found + state.backend(instruction).numbers(state.graph(instruction), state.storage)


def is_computed(state: MethodState, index: int) -> bool:
    """Whether an EValue is a tensor that an instruction or the caller made."""
    value = state.plan.values[index]
    return isinstance(value, TensorValue) and value.constant is None
