"""What a `.pte` declares: methods, signatures, operators, delegates, planned memory.

Only the program flatbuffer is parsed, by ExecuTorch's own deserializer; constants stay on disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.artifact.header import Header, read_header
from verifier.checkpoint import sha256_of_file
from verifier.errors import ArtifactError

if TYPE_CHECKING:
    from executorch.exir.schema import ExecutionPlan, Program

METHODS = ("vision_encoder", "token_embedding", "text_decoder")
Value = int | float | bool | str


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
    inputs: tuple[TensorFacts | Value | None, ...]
    outputs: tuple[TensorFacts | Value | None, ...]
    operators: dict[str, int]
    delegates: dict[str, int]
    planned_bytes: int

    @property
    def constant(self) -> Value | None:
        """The value of a metadata method such as `get_max_seq_len`; None for a method that computes."""
        value = self.outputs[0] if len(self.outputs) == 1 and not self.operators and not self.delegates else None
        return None if isinstance(value, TensorFacts) else value


@dataclass(frozen=True)
class Artifact:
    """A `.pte` by its bytes and its declarations."""

    path: Path
    sha256: str
    header: Header
    methods: dict[str, MethodFacts]

    @property
    def name(self) -> str:
        """File name, for messages."""
        return self.path.name

    def metadata(self, name: str) -> Value | None:
        """Value of a constant method, None if there is none."""
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

    def census(self) -> dict[str, dict[str, int]]:
        """Instructions per method: kernel names and `delegate:BACKEND`, sorted; metadata methods left out."""
        return {
            name: dict(sorted((facts.operators | {f"delegate:{k}": v for k, v in facts.delegates.items()}).items()))
            for name, facts in sorted(self.methods.items())
            if facts.constant is None
        }


def open_artifact(path: Path) -> Artifact:
    """Read a `.pte`'s declarations. Raises `ArtifactError` if it is not a readable ExecuTorch program of a LLaVA."""
    header = read_header(path)
    program = parse_program(path, header)
    methods = {plan.name: _method(plan) for plan in program.execution_plan}
    missing = [name for name in METHODS if name not in methods]
    if missing:
        raise ArtifactError(
            f"the program is not a LLaVA: no method {', '.join(missing)}",
            got=", ".join(sorted(methods)) or "no methods",
            expected=", ".join(METHODS),
            where=path,
            fix="export it with python -m verifier.export_llava",
        )
    return Artifact(path, sha256_of_file(path), header, methods)


def parse_program(path: Path, header: Header) -> Program:
    """The program flatbuffer as ExecuTorch's own records. Raises `ArtifactError`."""
    from executorch.exir._serialize._program import _flatbuffer_to_program

    with path.open("rb") as file:
        data = file.read(header.program_bytes)
    try:
        program: Program = _flatbuffer_to_program(data)
        _check_segments(program, header, path)
        for plan in program.execution_plan:
            _method(plan)
    except ArtifactError:
        raise
    except Exception as error:  # the deserializer has no error type of its own
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtifactError(
            "the program cannot be parsed",
            got=reason,
            expected="an ExecuTorch program of schema ET12",
            where=path,
            fix="export or copy it again",
        ) from error
    return program


def _check_segments(program: Program, header: Header, path: Path) -> None:
    for number, segment in enumerate(program.segments):
        if segment.offset + segment.size > header.file_bytes - header.segment_base:
            raise ArtifactError(
                f"segment {number} lies outside the file",
                got=f"bytes {segment.offset}..{segment.offset + segment.size} of {header.file_bytes - header.segment_base}",
                where=path,
                fix="copy or export the file again",
            )


def _method(plan: ExecutionPlan) -> MethodFacts:
    from executorch.exir.schema import DelegateCall, KernelCall

    operators: Counter[str] = Counter()
    delegates: Counter[str] = Counter()
    for chain in plan.chains:
        for instruction in chain.instructions:
            call: Any = instruction.instr_args
            if isinstance(call, KernelCall):
                operator = plan.operators[call.op_index]
                operators[f"{operator.name}.{operator.overload}" if operator.overload else operator.name] += 1
            elif isinstance(call, DelegateCall):
                delegates[plan.delegates[call.delegate_index].id] += 1
    return MethodFacts(
        name=plan.name,
        inputs=tuple(_value(plan, index) for index in plan.inputs),
        outputs=tuple(_value(plan, index) for index in plan.outputs),
        operators=dict(operators),
        delegates=dict(delegates),
        planned_bytes=sum(plan.non_const_buffer_sizes[1:]),
    )


def _value(plan: ExecutionPlan, index: int) -> TensorFacts | Value | None:
    from executorch.exir import schema

    value: Any = plan.values[index].val
    if isinstance(value, schema.Tensor):
        dynamic = value.shape_dynamism != schema.TensorShapeDynamism.STATIC
        return TensorFacts(schema.ScalarType(value.scalar_type).name, tuple(value.sizes), dynamic)
    for kind, name in (
        (schema.Int, "int_val"),
        (schema.Bool, "bool_val"),
        (schema.Double, "double_val"),
        (schema.String, "string_val"),
    ):
        if isinstance(value, kind):
            scalar: Value = getattr(value, name)
            return scalar
    return None
