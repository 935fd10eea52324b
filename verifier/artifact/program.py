"""What a `.pte` declares: methods, signatures, operators, delegates, planned memory.

Only the program's FlatBuffer is parsed; constants stay on disk. `read_flatbuffer` is ours because a file is not to be
trusted: ExecuTorch's deserializer follows every offset, and a small hostile file makes it fill the memory. Tests hold the
two against each other.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from verifier.artifact.flat import read_flatbuffer
from verifier.artifact.header import Header, read_header
from verifier.artifact.plan import ListValue, Plan, TensorValue, Value, read_plan
from verifier.artifact.schema import program_schema
from verifier.artifact.storage import Span, Storage, locate
from verifier.core.errors import ArtifactError
from verifier.core.files import sha256_of_file

Scalar = int | float | bool | str


@dataclass(frozen=True)
class TensorFacts:
    """Declared tensor: dtype as ExecuTorch spells it, upper bounds of the sizes, and whether they may be smaller."""

    dtype: str
    sizes: tuple[int, ...]
    dynamic: bool

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.sizes)}{' dynamic' if self.dynamic else ''}"


@dataclass(frozen=True)
class MethodFacts:
    """One method. `operators` and `delegates` count instructions; `planned_bytes` is its arena, caches included."""

    name: str
    inputs: tuple[TensorFacts | Scalar | None, ...]
    outputs: tuple[TensorFacts | Scalar | None, ...]
    operators: dict[str, int]
    delegates: dict[str, int]
    planned_bytes: int

    @property
    def constant(self) -> Scalar | tuple[Scalar, ...] | None:
        """The value of a metadata method such as `get_max_seq_len`, or its values if it returns several, as `get_eos_ids` may; None for a
        method that computes."""
        if self.operators or self.delegates:
            return None
        values = tuple(value for value in self.outputs if value is not None and not isinstance(value, TensorFacts))
        if len(values) != len(self.outputs) or not values:
            return None
        return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class Declarations:
    """What a `.pte` says of itself."""

    path: Path
    sha256: str
    methods: dict[str, MethodFacts]

    @property
    def name(self) -> str:
        """File name, for messages."""
        return self.path.name

    def metadata(self, name: str) -> Scalar | tuple[Scalar, ...] | None:
        """Value of a constant method, or its values; None if there is none."""
        return self.methods[name].constant if name in self.methods else None

    @property
    def max_seq_len(self) -> int:
        """The limit that runners obey. Raises `ArtifactError` if the file does not say."""
        value = self.metadata("get_max_seq_len")
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ArtifactError(
                "the program has no usable get_max_seq_len", got=value, expected="an integer >= 2", where=self.path
            )
        return value


@dataclass(frozen=True)
class Artifact(Declarations):
    """A `.pte` by its bytes and its declarations. `methods` are what checks compare; `plans` are the instructions. `decoded` keeps what backends
    made of delegates' payloads (`verifier.backends.calls`)."""

    header: Header
    storage: Storage
    plans: dict[str, Plan]
    decoded: dict[Span, object] = field(default_factory=dict, repr=False, compare=False)


def open_artifact(path: Path) -> Artifact:
    """Read a `.pte`'s declarations. Raises `ArtifactError` if it is not a readable ExecuTorch program."""
    header = read_header(path)
    storage, plans = read_program(path, header)
    methods = {name: _facts(plan) for name, plan in plans.items()}
    return Artifact(path, sha256_of_file(path), methods, header, storage, plans)


def read_program(path: Path, header: Header) -> tuple[Storage, dict[str, Plan]]:
    """Where the file's bytes lie, and its methods. Reads the program alone, no constants. Raises `ArtifactError`."""
    with path.open("rb") as file:
        data = file.read(header.program_bytes)
    try:
        program = read_flatbuffer(memoryview(data), program_schema(), "Program", what="the program")
        storage = locate(program, header, path)
        plans = [read_plan(plan, storage) for plan in program.execution_plan]
    except (TypeError, AttributeError) as error:  # a part that every program has is missing
        raise ArtifactError(
            "the program cannot be parsed",
            got=error,
            expected="an ExecuTorch program",
            where=path,
            fix="export or copy it again",
        ) from error
    if len({plan.name for plan in plans}) != len(plans):
        raise ArtifactError("two methods have one name", got=", ".join(plan.name for plan in plans), where=path)
    return storage, {plan.name: plan for plan in plans}


def _facts(plan: Plan) -> MethodFacts:
    return MethodFacts(
        name=plan.name,
        inputs=tuple(_declared(plan.values[index]) for index in plan.inputs),
        outputs=tuple(_declared(plan.values[index]) for index in plan.outputs),
        operators=dict(Counter(step.name for step in plan.instructions if step.kind == "kernel")),
        delegates=dict(Counter(step.name for step in plan.instructions if step.kind == "delegate")),
        planned_bytes=sum(plan.arenas_bytes[1:]),
    )


def _declared(value: Value) -> TensorFacts | Scalar | None:
    if isinstance(value, TensorValue):
        return TensorFacts(value.dtype, value.sizes, value.dynamic)
    return None if isinstance(value, ListValue) else value
