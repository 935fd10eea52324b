"""Lower the three methods to XNNPACK and serialize them: the same partitioners and passes as ExecuTorch's own LLaVA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram

from verifier.core import upstream
from verifier.families.conventions import DECODER, ENCODER

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager, ExecutorchProgramManager

    from verifier.core.types import Recipe


Metadata = int | tuple[int, ...]
"""What a constant method returns: one value, or several."""


def _partitioners(method: str) -> list[Any]:
    """The decoder gets two: its dynamically quantized linears one by one (so that packed weights are never held twice), then
    whatever else XNNPACK takes."""
    partitioner = upstream.XNNPACK_PARTITIONER.resolve()
    if method == DECODER:
        dynamic = upstream.XNNPACK_PRECISIONS.resolve().DYNAMIC_QUANT
        return [partitioner(config_precisions=dynamic, per_op_mode=True), partitioner()]
    return [partitioner()] if method == ENCODER else []


def to_edge(programs: Mapping[str, ExportedProgram], metadata: Mapping[str, Metadata]) -> EdgeProgramManager:
    """Partition and delegate all methods at once, as upstream does."""
    from executorch.exir import to_edge_transform_and_lower

    return to_edge_transform_and_lower(
        dict(programs),
        partitioner={name: _partitioners(name) for name in programs},
        constant_methods=dict(metadata),
        compile_config=upstream.EDGE_CONFIG.resolve()(_check_ir_validity=False),
    )


def lower_method(method: str, program: ExportedProgram) -> ExportedProgram:
    """Partition and delegate one method; `join` makes of several what `to_edge` makes, and no two are in memory untransformed."""
    lowered: ExportedProgram = to_edge({method: program}, {}).exported_program(method)
    return lowered


def join(methods: Mapping[str, ExportedProgram], metadata: Mapping[str, Metadata]) -> EdgeProgramManager:
    """Methods from `lower_method`, in the order of the file, and its constant methods."""
    from executorch.exir import EdgeProgramManager

    return EdgeProgramManager(dict(methods), dict(metadata), upstream.EDGE_CONFIG.resolve()(_check_ir_validity=False))


def to_program(edge: EdgeProgramManager) -> ExecutorchProgramManager:
    """Fuse, plan memory, emit. Inputs are not planned: callers own their buffers."""
    from executorch.exir import ExecutorchBackendConfig

    return edge.to_executorch(
        ExecutorchBackendConfig(
            extract_delegate_segments=True,
            passes=[upstream.QUANT_FUSION.resolve()()],
            memory_planning_pass=upstream.MEMORY_PLANNING.resolve()(alloc_graph_input=False),
            # by constraint for all three: upstream's script takes the hint for token_embedding, whose bound is then the
            # length of the example prompt, and longer prompts are refused at run time
            sym_shape_eval_pass=upstream.SHAPES_BY_CONSTRAINT.resolve()(),
        )
    )


def metadata(recipe: Recipe, *, vocabulary: int, bos_id: int, eos_ids: tuple[int, ...]) -> dict[str, Metadata]:
    """Constant methods that runners ask for by name. `get_eos_ids` returns every id that ends an answer, each as an output of its own, as
    ExecuTorch's runner reads it (llm_runner_helper.cpp, `get_eos_ids`)."""
    return {
        "get_max_seq_len": recipe.max_seq_len,
        "get_max_context_len": recipe.max_context_len,
        "get_vocab_size": vocabulary,
        "get_bos_id": bos_id,
        "get_eos_ids": eos_ids[0] if len(eos_ids) == 1 else eos_ids,
        "use_kv_cache": 1,
        "use_sdpa_with_kv_cache": int(recipe.use_sdpa_with_kv_cache),
        "enable_dynamic_shape": 1,
    }
