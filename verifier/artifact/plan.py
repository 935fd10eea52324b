"""A method as the runtime sees it: its EValues, its instructions, its arena."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from verifier.artifact.dtypes import PROGRAM
from verifier.artifact.flat import Record
from verifier.artifact.storage import Span, Storage
from verifier.core.errors import ArtifactError

RANK_LIMIT = 16  # kTensorDimensionLimit of the runtime


@dataclass(frozen=True)
class TensorValue:
    """A tensor EValue. `sizes` are upper bounds if `dynamic`. `constant` are its bytes in the file; `place` is its arena
    and offset in bytes in the memory plan; a graph input that the caller provides has neither."""

    dtype: str
    sizes: tuple[int, ...]
    dim_order: tuple[int, ...]
    dynamic: bool
    constant: Span | None
    place: tuple[int, int] | None
    name: str | None

    @property
    def size_bytes(self) -> int:
        """Bytes at the upper bound."""
        return math.prod(self.sizes) * PROGRAM[self.dtype].item_bytes


@dataclass(frozen=True)
class ListValue:
    """A list EValue. Items of an IntList, TensorList or OptionalTensorList are numbers of EValues, -1 for none;
    of the others, values."""

    kind: str
    items: tuple[Any, ...]

    @property
    def boxed(self) -> bool:
        """Whether the items are numbers of EValues."""
        return self.kind in ("IntList", "TensorList", "OptionalTensorList")


Value = TensorValue | ListValue | int | float | bool | str | None


@dataclass(frozen=True)
class Instruction:
    """One step. `name` is the operator with its overload, or the backend's id of a delegate call. `delegate` is the
    number of the delegate, None for a kernel. `args` are numbers of EValues."""

    index: int
    kind: str
    name: str
    args: tuple[int, ...]
    delegate: int | None


@dataclass(frozen=True)
class Delegate:
    """A delegate's backend, and where its payload lies in the file."""

    backend: str
    payload: Span


@dataclass(frozen=True)
class Plan:
    """One method. `arenas_bytes` are the sizes of its planned buffers, the first of which is unused."""

    name: str
    values: tuple[Value, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    instructions: tuple[Instruction, ...]
    delegates: tuple[Delegate, ...]
    arenas_bytes: tuple[int, ...]


def read_plan(plan: Record, storage: Storage) -> Plan:
    """A method from its record. Raises `ArtifactError` for numbers that point nowhere and control flow across chains."""
    values = tuple(_value(entry.val, plan.name, storage) for entry in plan.values)
    delegates = tuple(_delegate(record, storage) for record in plan.delegates)
    if len(plan.chains) > 1:
        raise ArtifactError(f"{plan.name} has several chains", got=len(plan.chains), expected=1, where=storage.path)
    listed = plan.chains[0].instructions if plan.chains else []
    instructions = tuple(
        _instruction(number, record.instr_args, plan, len(delegates)) for number, record in enumerate(listed)
    )
    indices = [*plan.inputs, *plan.outputs, *(arg for step in instructions for arg in step.args)]
    indices += [
        item for value in values if isinstance(value, ListValue) and value.boxed for item in value.items if item != -1
    ]
    for index in indices:
        if not 0 <= index < len(values):
            raise ArtifactError(
                f"{plan.name} uses an EValue that does not exist",
                got=index,
                expected=f"0..{len(values) - 1}",
                where=storage.path,
            )
    return Plan(
        name=str(plan.name),
        values=values,
        inputs=tuple(plan.inputs),
        outputs=tuple(plan.outputs),
        instructions=instructions,
        delegates=delegates,
        arenas_bytes=tuple(plan.non_const_buffer_sizes),
    )


def _value(val: Record | None, method: str, storage: Storage) -> Value:
    if val is None or val.kind == "Null":
        return None
    if val.kind == "Tensor":
        return _tensor(val, method, storage)
    if val.kind in ("Int", "Bool", "Double", "String"):
        scalar: Value = val.fields[f"{val.kind.lower()}_val"]
        return scalar
    return ListValue(val.kind, tuple(val.items))


def _tensor(val: Record, method: str, storage: Storage) -> TensorValue:
    sizes = tuple(val.sizes)
    if any(size < 0 for size in sizes) or len(sizes) > RANK_LIMIT or val.scalar_type not in PROGRAM:
        raise ArtifactError(
            f"{method} declares a tensor that cannot be", got=f"{val.scalar_type}{list(sizes)[:20]}", where=storage.path
        )
    order = tuple(val.dim_order)
    if order and sorted(order) != list(range(len(sizes))):
        raise ArtifactError(f"{method} declares a tensor with a wrong dim order", got=order, where=storage.path)
    size_bytes = math.prod(sizes) * PROGRAM[val.scalar_type].item_bytes
    allocation, extra = val.allocation_info, val.extra_tensor_info
    place = None
    if allocation is not None:
        place = (int(allocation.memory_id), (allocation.memory_offset_high << 32) | allocation.memory_offset_low)
    constant = None
    if val.data_buffer_idx and place is None and (extra is None or extra.location != "EXTERNAL"):
        constant = storage.constant(val.data_buffer_idx, size_bytes)
    return TensorValue(
        dtype=str(val.scalar_type),
        sizes=sizes,
        dim_order=order or tuple(range(len(sizes))),
        dynamic=val.shape_dynamism != "STATIC",
        constant=constant,
        place=place,
        name=None if extra is None else extra.fully_qualified_name,
    )


def _instruction(number: int, record: Record | None, plan: Record, delegates: int) -> Instruction:
    if record is None:
        raise ArtifactError(f"instruction {number} of {plan.name} is empty")
    if record.kind == "KernelCall":
        if not 0 <= record.op_index < len(plan.operators):
            raise ArtifactError(f"instruction {number} of {plan.name} calls no operator", got=record.op_index)
        operator = plan.operators[record.op_index]
        name = f"{operator.name}.{operator.overload}" if operator.overload else str(operator.name)
        return Instruction(number, "kernel", name, tuple(record.args), None)
    if record.kind == "DelegateCall":
        if not 0 <= record.delegate_index < delegates:
            raise ArtifactError(f"instruction {number} of {plan.name} calls no delegate", got=record.delegate_index)
        backend = str(plan.delegates[record.delegate_index].id)
        return Instruction(number, "delegate", backend, tuple(record.args), record.delegate_index)
    if record.kind == "MoveCall":
        return Instruction(number, "move", "move", (record.move_from, record.move_to), None)
    if record.kind == "FreeCall":
        return Instruction(number, "free", "free", (record.value_index,), None)
    return Instruction(number, "jump", "jump_false", (record.cond_value_index,), None)


def _delegate(record: Record, storage: Storage) -> Delegate:
    place = record.processed
    if place is None or place.location != "SEGMENT" or not 0 <= place.index < len(storage.segments):
        raise ArtifactError(
            f"a delegate of {record.id} has no payload in a segment",
            got=None if place is None else f"{place.location} {place.index}",
            where=storage.path,
            fix="export with delegate segments extracted, which is ExecuTorch's default",
        )
    return Delegate(str(record.id), storage.segments[place.index])
