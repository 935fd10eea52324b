"""Every name of ExecuTorch, torchao, transformers and torch that a new version may move: private ones, and ones deep inside a package.

No other module spells such a name. `tests/unit/test_upstream.py` resolves all of them and reports what the installed versions lack, and that no
other module imports one. Importing this module imports none of the packages: a name is looked up when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from verifier.core.errors import UpstreamError
from verifier.core.system import library

SEEN: dict[str, tuple[str, ...]] = {
    "executorch": ("1.4.1", "1.5.0", "1.5.1"),
    "pytorch_tokenizers": ("1.5.0",),
    "torch": ("2.13.0",),
    "torchao": ("0.18.0",),
    "transformers": ("5.23.0",),
}
"""Versions in which every name below was found, by package; the last one is that of `constraints.txt`."""


def requirement(package: str) -> str:
    """What to ask pip for: `executorch==1.5.1`."""
    return f"{package}=={SEEN[package][-1]}"


@dataclass(frozen=True)
class Name:
    """A name in the form `package.module:attribute`, or a module. `uses` are attributes of it, with dots, that are private or likely
    to move. `before` is where older versions have it; what is `optional` saves time or memory alone."""

    path: str
    why: str
    uses: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    optional: bool = False

    @property
    def package(self) -> str:
        """The package that has it."""
        return self.path.partition(".")[0]

    @property
    def module(self) -> Any:
        """The module that has it, for those who replace the name there."""
        return Name(self.path.partition(":")[0], self.why).resolve()

    def resolve(self) -> Any:
        """The object, imported now. Raises `UpstreamError` if the installed version lacks it or one of `uses`."""
        problem: Exception | None = None
        for path in (self.path, *self.before):
            try:
                found = resolve_name(path)
                for used in self.uses:
                    attrgetter(used)(found)
            except (ImportError, AttributeError) as error:
                problem = problem or error
            else:
                return found
        raise _missing(self.package, self.path, problem) from problem


@dataclass(frozen=True)
class File:
    """A file or folder inside a package; `symbol` is the mangled name of a C++ function that its code defines. What is `optional` serves the C++ runner
    alone."""

    package: str
    path: str
    why: str
    symbol: str = ""
    optional: bool = False

    def resolve(self) -> Path:
        """Its place, by the package's folder: the package is not imported. Raises `UpstreamError` if the installed version lacks it."""
        spec = find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise UpstreamError(f"{self.package} is not installed", fix=f"pip install {requirement(self.package)}")
        found = Path(spec.submodule_search_locations[0], self.path)
        if not found.exists():
            raise _missing(self.package, self.path, f"there is no {found}")
        if self.symbol and self.symbol.encode() not in found.read_bytes():
            raise _missing(self.package, self.path, f"it does not define {self.symbol}")
        return found


def _missing(package: str, path: str, error: object) -> UpstreamError:
    return UpstreamError(
        f"the installed {package} lacks a name that the verifier uses",
        got=error,
        expected=f"{path}, as in {package} {', '.join(SEEN[package])}",
        fix=f"pip install {requirement(package)}",
    )


# Reading a program, an ETDump and an XNNPACK delegate
SCALAR_TYPES = File("executorch", "exir/_serialize/scalar_type.fbs", "schema: dtypes of a program")
PROGRAM = File("executorch", "exir/_serialize/program.fbs", "schema: a program")
ETDUMP_SCALAR_TYPES = File("executorch", "devtools/etdump/scalar_type.fbs", "schema: dtypes of an ETDump")
ETDUMP = File("executorch", "devtools/etdump/etdump_schema_flatcc.fbs", "schema: an ETDump")
XNNPACK_GRAPH = File("executorch", "backends/xnnpack/serialization/schema.fbs", "schema: a delegate's graph")

# Running a program
RUNTIME = Name(
    "executorch.extension.pybindings._C",
    "the runtime without `portable_lib`, which imports all of the exporter",
    uses=(
        *("_load_for_executorch", "_unsafe_reset_threadpool", "_get_operator_names"),
        *(f"ExecuTorchModule.{name}" for name in ("run_method", "method_names", "write_etdump_result_to_file")),
    ),
    before=("executorch.extension.pybindings._portable_lib",),  # 1.4
)
LLAMA_KERNELS = File(
    "executorch", library("extension/llm/custom_ops/libcustom_ops_aot_lib"), "kernels: cache and attention"
)
QUANTIZED_KERNELS = File(
    "executorch", library("kernels/quantized/libquantized_ops_aot_lib"), "kernels: quantized embedding"
)
CMAKE_PACKAGE = File("executorch", "share/cmake", "what the C++ runner is built against")
THREAD_POOL = File(
    "executorch",
    library("lib/libexecutorch_threadpool"),
    "the C++ runner declares these two functions itself: the wheel has no header of them (native/src/engine.cpp)",
    symbol="_ZN10executorch9extension10threadpool10ThreadPool24_unsafe_reset_threadpoolEj",
    optional=True,
)
GET_THREAD_POOL = File(
    "executorch",
    THREAD_POOL.path,
    THREAD_POOL.why,
    symbol="_ZN10executorch9extension10threadpool14get_threadpoolEv",
    optional=True,
)
TOKENIZERS = Name(
    "pytorch_tokenizers.pytorch_tokenizers_cpp",
    "the C++ tokenizers that ExecuTorch's runners use",
    uses=("HFTokenizer", "Tiktoken", "SPTokenizer", "Llama2cTokenizer", "Tekken"),
)
MULTIMODAL_RUNNER = Name(
    "executorch.extension.llm.runner._llm_runner",
    "ExecuTorch's own runner, behind its apps",
    uses=(
        *(f"MultimodalRunner.{name}" for name in ("generate", "prefill", "reset", "stop")),
        *("GenerationConfig", "make_image_input", "make_text_input", "make_token_input"),
        *("Stats.num_prompt_tokens", "Stats.num_generated_tokens"),
    ),
)
LLAMA2C_TOKENIZER = Name("pytorch_tokenizers.llama2c:Llama2cTokenizer", "writes tokenizer.bin")

# Writing a program that has a part of a delegate: the search inside a delegate
PROGRAM_CLASSES = Name(
    "executorch.exir.schema",
    "the records of a program",
    uses=(
        *("Program", "ExecutionPlan", "ContainerMetadata", "Chain", "Instruction", "DelegateCall", "EValue", "Buffer"),
        *("Tensor", "ScalarType", "TensorShapeDynamism.STATIC", "AllocationDetails", "SubsegmentOffsets"),
        *("BackendDelegate", "BackendDelegateDataReference", "BackendDelegateInlineData", "DataLocation.INLINE"),
    ),
)
PTE_FILE = Name("executorch.exir._serialize._program:PTEFile", "a program with its named data")
SERIALIZE_PTE = Name("executorch.exir._serialize._program:serialize_pte_binary", "records of a program to bytes")
DESERIALIZE_PROGRAM = Name(
    "executorch.exir._serialize._program:_flatbuffer_to_program", "a test reads a program a second time"
)
NAMED_DATA = Name("executorch.exir._serialize._named_data_store:NamedDataStoreOutput", "the constants of delegates")
DATA_ENTRY = Name("executorch.exir._serialize.data_serializer:DataEntry", "one of these constants")
FLATC_COMPILE = Name("executorch.exir._serialize._flatbuffer:_flatc_compile", "JSON to a delegate's graph")
FLATC_DECOMPILE = Name("executorch.exir._serialize._flatbuffer:_flatc_decompile", "a delegate's graph to JSON")

# The eager model
LLAMA_ARGUMENTS = Name(
    "executorch.examples.models.llama.model_args:ModelArgs",
    "the geometry of a decoder",
    uses=(
        *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size", "norm_eps", "rope_theta"),
        *("max_batch_size", "max_seq_len", "max_context_len", "use_kv_cache", "use_sdpa_with_kv_cache_op"),
        *("enable_dynamic_shape", "use_hf_rope", "apply_embedding"),
    ),
)
LLAMA_DECODER = Name(
    "executorch.examples.models.llama.llama_transformer:construct_transformer",
    "the decoder that ExecuTorch's LLaVA is exported from",
)
LLAMA_ROPE = Name("executorch.examples.models.llama.rope:Rope", "its tables of rotations")
USE_CUSTOM_CACHE = Name(
    "executorch.examples.models.llama.source_transformation.custom_kv_cache:replace_kv_cache_with_custom_kv_cache",
    "the operator llama::update_cache in place of index_put",
)
USE_CUSTOM_SDPA = Name(
    "executorch.examples.models.llama.source_transformation.sdpa:replace_sdpa_with_custom_op",
    "the operator llama::custom_sdpa in place of PyTorch's attention",
)

# Exporting
XNNPACK_PARTITIONER = Name(
    "executorch.backends.xnnpack.partition.xnnpack_partitioner:XnnpackPartitioner", "what a delegate takes"
)
XNNPACK_PRECISIONS = Name(
    "executorch.backends.xnnpack.partition.config.xnnpack_config:ConfigPrecisionType", "dynamic quantization only"
)
XNNPACK_ELU = Name(
    "executorch.backends.xnnpack.partition.config.generic_node_configs:EluConfig", "a fault: a partitioner for ELU only"
)
XNNPACK_QUANTIZER = Name(
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer:XNNPACKQuantizer", "static int8 of the vision encoder"
)
XNNPACK_SYMMETRIC = Name(
    "executorch.backends.xnnpack.quantizer.xnnpack_quantizer:get_symmetric_quantization_config", "its configuration"
)
EDGE_CONFIG = Name(
    "executorch.exir:EdgeCompileConfig", "operators outside its own list are allowed", uses=("_check_ir_validity",)
)
PREPARE_PT2E = Name("torchao.quantization.pt2e.quantize_pt2e:prepare_pt2e", "observers for static int8")
CONVERT_PT2E = Name("torchao.quantization.pt2e.quantize_pt2e:convert_pt2e", "static int8 by what they observed")
MIN_MAX_OBSERVER = Name("torchao.quantization.pt2e.observer:MinMaxObserver", "static int8 of one weight")
CHANNEL_OBSERVER = Name(
    "torchao.quantization.pt2e.observer:PerChannelMinMaxObserver", "static int8 of one weight, channel by channel"
)
QUANTIZE_OPERATORS = Name("torch.ao.quantization.fx._decomposed", "registers torch.ops.quantized_decomposed")
MEMORY_PLANNING = Name("executorch.exir.passes:MemoryPlanningPass", "inputs are not planned")
QUANT_FUSION = Name("executorch.exir.passes.quant_fusion_pass:QuantFusionPass", "fuses the quantized embedding")
SHAPES_BY_CONSTRAINT = Name(
    "executorch.exir.passes.sym_shape_eval_pass:ConstraintBasedSymShapeEvalPass", "upper bounds of dynamic shapes"
)
MEMORY_PROFILE = Name("executorch.util.activation_memory_profiler:generate_memory_trace", "--profile-memory")

# Exporting faster, with the same bytes: these are replaced for as long as an export runs (export/lean.py, export/lean_partition.py)
XNNPACK_PASSES = Name(
    "executorch.backends.xnnpack._passes:XNNPACKPassManager",
    "passes that cannot change a graph",
    uses=("transform",),
    optional=True,
)
CONTAINS_OPERATOR = Name(
    "executorch.exir.graph_module:contains_any_call_fn_target_op",
    "whether a program is to be decomposed",
    optional=True,
)
QUANT_PRIMITIVES = Name(
    "torchao.quantization.quant_primitives",
    "shape functions for its operators",
    uses=("_quantize_affine_no_dtype_cast", "_dequantize_affine_no_dtype_check"),
    optional=True,
)
HQQ = Name(
    "torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor",
    "HQQ searches the scales of some groups at a time",
    uses=("_choose_qparams_and_quantize_scale_only_hqq",),
    optional=True,
)
NODE_SOURCE = Name("torch.fx.traceback:NodeSource", "histories of nodes are shared", optional=True)
FAKE_TENSOR = Name("torch._subclasses.fake_tensor:FakeTensor", "tensors without data", optional=True)
PARTITIONING = Name(
    "executorch.exir.backend.backend_api",
    "delegates are taken out in linear time",
    uses=("_create_partitions_in_graph_module", "_insert_lowered_submodule"),
    optional=True,
)
LOWERED_MODULES = Name(
    "executorch.exir.lowered_backend_module", "a graph is compiled once", uses=("legalize_graph",), optional=True
)
XNNPACK_BACKEND = Name(
    "executorch.backends.xnnpack.xnnpack_preprocess:XnnpackBackend",
    "weights are not copied before they are packed",
    uses=("copy_exported_program_for_preprocess",),
    optional=True,
)

# Hugging Face's side of a comparison
LOAD_IMAGE = Name("transformers.image_utils:load_image", "the loader of processors")
LLAVA_IMAGE_PROCESSOR = Name(
    "transformers.models.llava.image_processing_pil_llava:LlavaImageProcessorPil", "the processor without torchvision"
)
CLIP_IMAGE_PROCESSOR = Name(
    "transformers.models.clip.image_processing_pil_clip:CLIPImageProcessorPil", "a test of the defaults of its fields"
)
LLAMA_LAYER = Name(
    "transformers.models.llama.modeling_llama:LlamaDecoderLayer", "a layer of a decoder that is streamed"
)
TRANSFORMERS_LOGGING = Name("transformers.utils.logging", "warnings and progress bars of loading are switched off")

# For tests, benchmarks and the training of llava_tiny
CUSTOM_OPERATORS = Name("executorch.extension.llm.custom_ops.custom_ops", "registers torch.ops.llama")
QUANTIZED_PATTERNS = Name(
    "executorch.exir.passes._quant_patterns_and_replacements", "registers the lookup of an embedding in an int8 table"
)
TAP_COMPARE = Name(
    "executorch.devtools.intermediate_output_tap:tap_compare", "upstream's comparison, measured beside ours"
)
TAP_ALL = Name("executorch.devtools.intermediate_output_tap:select_all_call_function", "of every operator")
TAP_WHOLE = Name("executorch.devtools.intermediate_output_tap:FULL_TENSOR", "with every element")
ATTENTION_FUNCTIONS = Name("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS", "an attention that trains faster")
