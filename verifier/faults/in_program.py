"""Faults in the bytes: EValues, arguments and order of instructions, memory plan, attributes of delegates' nodes, metadata."""

from __future__ import annotations

from typing import Any

from verifier.artifact.flat import Record
from verifier.artifact.plan import Instruction, TensorValue
from verifier.audit.caches import find_caches
from verifier.audit.records import Cache
from verifier.core.errors import ArtifactError
from verifier.faults.fault import NOT_VERIFIED, Fault, Work, fault
from verifier.faults.surgery import Flat, graph_of, program_of, write_scalar

STATIC = "structure.*,weights.*"


def _method(work: Work, name: str) -> tuple[Flat, Any]:
    flat = program_of(work.pte)
    return flat, next(plan for plan in flat.root.execution_plan if plan.name == name)


def _step(work: Work, method: str, operator: str, number: int) -> Instruction:
    """The instruction that calls an operator for the n-th time."""
    return [step for step in work.clean.plans[method].instructions if step.name == operator][number]


def _set_argument(work: Work, method: str, step: Instruction, place: int, value: int) -> None:
    """Let an argument of a kernel be another EValue."""
    flat, plan = _method(work, method)
    call = plan.chains[0].instructions[step.index].instr_args
    write_scalar(work.pte, (flat.items(call, "KernelCall", "args") + 4 * place, "i"), value)


_FIELD: dict[type, tuple[str, str]] = {
    bool: ("Bool", "bool_val"),
    int: ("Int", "int_val"),
    float: ("Double", "double_val"),
}


def _set_value(work: Work, method: str, index: int, value: float) -> None:
    """Let an EValue that holds a number hold another one."""
    flat, plan = _method(work, method)
    kind, name = _FIELD[type(work.clean.plans[method].values[index])]
    write_scalar(work.pte, flat.field(plan.values[index].val, kind, name), value)


def _number(work: Work, wanted: int) -> int:
    """An EValue of the decoder that holds an integer for good: no instruction writes it."""
    plan = work.decoder
    written = {step.args[-1] for step in plan.instructions if step.args}
    return next(i for i, v in enumerate(plan.values) if type(v) is int and v == wanted and i not in written)


def _cache(work: Work, kind: str, layer: int) -> Cache:
    return next(one for one in find_caches(work.clean) if (one.kind, one.layer) == (kind, layer))


def _writer(work: Work, kind: str, layer: int) -> Instruction:
    """The instruction that writes a cache."""
    value = _cache(work, kind, layer).value
    return next(s for s in work.decoder.instructions if s.name == "llama::update_cache.out" and s.args[1] == value)


@fault(
    "bytes",
    "the keys of layer 2 are written to layer 3's cache",
    rows=(37,),
    step="lowering",
    place=r"layers\.2\.attention",
)
def keys_into_another_cache(work: Work) -> None:
    """Layer 2's own stays empty."""
    _set_argument(work, "text_decoder", _writer(work, "k", 2), 1, _cache(work, "k", 3).value)


@fault(
    "bytes",
    "layer 1 writes the keys of every chunk to position 0",
    rows=(52,),
    step="lowering",
    place=r"layers\.1\.attention",
)
def rows_to_one_place(work: Work) -> None:
    """Right for the first chunk only."""
    _set_argument(work, "text_decoder", _writer(work, "k", 1), 2, _number(work, 0))


@fault(
    "bytes",
    "attention of layer 2 takes every chunk as the first one",
    rows=(34,),
    step="lowering",
    place=r"layers\.2\.attention",
)
def mask_upper_left(work: Work) -> None:
    """Its start is 0, whatever the position."""
    _set_argument(work, "text_decoder", _step(work, "text_decoder", "llama::custom_sdpa.out", 2), 3, _number(work, 0))


@fault("bytes", "attention of layer 3 is not causal", rows=(30,), step="lowering", place=r"layers\.3\.attention")
def not_causal(work: Work) -> None:
    """Nobody sees it while decoding token by token."""
    step = _step(work, "text_decoder", "llama::custom_sdpa.out", 3)
    _set_value(work, "text_decoder", step.args[6], 0)


@fault("bytes", "keys and values of layer 0 swapped in its attention", step="lowering", place=r"layers\.0\.attention")
def keys_for_values(work: Work) -> None:
    """Two arguments of one kernel."""
    step = _step(work, "text_decoder", "llama::custom_sdpa.out", 0)
    _set_argument(work, "text_decoder", step, 1, step.args[2])
    _set_argument(work, "text_decoder", step, 2, step.args[1])


@fault("bytes", "cosines for sines", rows=(27,), step="lowering", place="rope|attention")
def cosines_for_sines(work: Work) -> None:
    """Both slices read the same table; a program that computes them takes the cosine twice."""
    sines = _nodes_of(work, "text_decoder", "XNNSin")
    if sines:
        graph, _, wrapper, _ = sines[0]
        _rename_node(work, graph, wrapper, "XNNCos")
        return
    first, second = (_step(work, "text_decoder", "aten::slice_copy.Tensor_out", number) for number in (0, 1))
    _set_argument(work, "text_decoder", second, 0, first.args[0])


@fault(
    "bytes",
    "layer 1 rotates the first half of each head with itself",
    rows=(27,),
    step="lowering",
    place=r"layers\.1\.attention",
)
def halves_of_a_head(work: Work) -> None:
    """The slice of the second half of the queries begins at 0 and ends at 32."""
    slices = [s for s in work.decoder.instructions if s.name == "aten::slice_copy.Tensor_out" and len(s.args) == 7]
    first, second = slices[2 + 4], slices[2 + 5]
    for place in (2, 3):
        _set_argument(work, "text_decoder", second, place, first.args[place])


@fault(
    "bytes",
    "an instruction runs before the one that it needs",
    step=("lowering", "kernel"),
    place=r"instructions? .*(8[0-4]|7[1-3])",
)
def order_of_instructions(work: Work) -> None:
    """Layer 1 attends before its values are written: instructions 80 to 84 in our own program, 71 to 73 in optimum's."""
    flat, plan = _method(work, "text_decoder")
    writer = _writer(work, "v", 1).index
    flat.swap(work.pte, plan.chains[0], "Chain", "instructions", first=writer, second=writer + 2)


@fault(
    "bytes", "a cache is planned over scratch memory", rows=(36,), step="lowering", place="text_decoder", quick=STATIC
)
def cache_over_scratch(work: Work) -> None:
    """The keys of layer 1, over the largest tensor of every call."""
    kept = {one.value for one in find_caches(work.clean)}
    values = work.decoder.values
    scratch = [v for i, v in enumerate(values) if isinstance(v, TensorValue) and v.place and i not in kept]
    place = max(scratch, key=lambda value: value.size_bytes).place
    assert place is not None
    _move(work, "text_decoder", _cache(work, "k", 1).value, place[1])


def _move(work: Work, method: str, value: int, offset: int) -> None:
    flat, plan = _method(work, method)
    record = plan.values[value].val.allocation_info
    write_scalar(work.pte, flat.field(record, "AllocationDetails", "memory_offset_low"), offset)


@fault(
    "bytes",
    "two tensors of one call share memory while both are needed",
    rows=(36,),
    step=("lowering", "kernel"),
    place="text_decoder",
)
def scratch_over_scratch(work: Work) -> None:
    """The gate and the up projection of layer 2's feed-forward."""
    gate, up = (
        work.constants[f"text_decoder.layers.2.feed_forward.{name}.weight"].instruction for name in ("w1", "w3")
    )
    values = [work.decoder.instructions[at].args[-1] for at in (gate, up)]
    place = getattr(work.decoder.values[values[0]], "place", None)
    assert place is not None
    _move(work, "text_decoder", values[1], place[1])


@fault(
    "bytes",
    "the scale of vision attention is 1 % off in one layer",
    step="lowering",
    place=r"vision_encoder.*attention scale",
)
def vision_attention_scale(work: Work) -> None:
    """Of the queries only."""
    step = _step(work, "vision_encoder", "aten::mul.Scalar_out", 2)
    scale = work.clean.plans["vision_encoder"].values[step.args[1]]
    assert isinstance(scale, float)
    _set_value(work, "vision_encoder", step.args[1], scale * 1.01)


@fault("bytes", "the epsilon of one vision norm is 1e-3", step="lowering", place=r"layers\.2")
def epsilon_of_a_vision_norm(work: Work) -> None:
    """An attribute of one operator."""
    step = _step(work, "vision_encoder", "aten::native_layer_norm.out", 6)
    _set_value(work, "vision_encoder", step.args[4], 1e-3)


@fault("bytes", "a mean is taken over another dimension", step="lowering", place=r"layers\.1")
def mean_over_tokens(work: Work) -> None:
    """Layer 1's feed-forward norm averages over tokens: right for one token at a time."""
    step = _step(work, "text_decoder", "aten::mean.out", 3)
    axis = getattr(work.decoder.values[step.args[1]], "items", (0,))[0]
    _set_value(work, "text_decoder", axis, 1)


def _vision_nodes(work: Work, kind: str) -> list[tuple[Flat, Record, Record, int]]:
    """All nodes of a kind in the vision encoder's delegates: graph, node with its wrapper, number of the instruction."""
    return _nodes_of(work, "vision_encoder", kind)


def _nodes_of(work: Work, method: str, kind: str) -> list[tuple[Flat, Record, Record, int]]:
    found = []
    for step in work.clean.plans[method].instructions:
        if step.kind == "delegate":
            graph = graph_of(work.clean, method, step.index)
            found += [(graph, n.xnode_union, n, step.index) for n in graph.root.xnodes if n.xnode_union.kind == kind]
    return found


def _rename_node(work: Work, graph: Flat, wrapper: Record, kind: str) -> None:
    """Let the tag of a node say another kind, one that has the same fields."""
    members = graph.schema.unions["XNodeUnion"]
    tag = next(number for number, (name, _) in members.items() if name == kind)
    write_scalar(work.pte, graph.tag(wrapper, "XNode", "xnode_union"), tag)


@fault("bytes", "the class token stands behind the patches", rows=(10,), step="lowering", place="vision_encoder.input")
def class_token_last(work: Work) -> None:
    """The operands of the concatenation swapped."""
    graph, cat, _, _ = _vision_nodes(work, "XNNConcatenate2")[0]
    first, second = (graph.field(cat, "_XNNCat", name) for name in ("input1_id", "input2_id"))
    write_scalar(work.pte, first, cat.input2_id)
    write_scalar(work.pte, second, cat.input1_id)


def _input_quantization(work: Work, module: str) -> tuple[Flat, Any]:
    """The quantization with which a layer's int8 input enters the delegate of a module."""
    at = work.constants[f"vision_encoder.{module}.weight"].instruction
    graph = graph_of(work.clean, "vision_encoder", at)
    quantized = [v.xvalue_union for v in graph.root.xvalues if v.xvalue_union.kind == "XNNQuantizedTensorValue"]
    inputs = [v for v in quantized if v.tensor_value.id_out in graph.root.input_ids]
    return graph, next(v.quant_params for v in inputs if len(v.tensor_value.dims) == 3)


@fault(
    "bytes",
    "a zero point misread between two delegates",
    rows=(46,),
    step="lowering",
    place=r"EValue .* instruction",
)
def zero_point_misread(work: Work) -> None:
    """The residual stream enters layer 2's second half with another zero point than it left the first half with."""
    graph, given = _input_quantization(work, "tower.layers.2.fc1")
    write_scalar(work.pte, graph.field(given, "PerTensorQuant", "zero_point"), given.zero_point + 40)


@fault("bytes", "a scale misread between two delegates", rows=(46,), step="lowering", place=r"EValue .* instruction")
def activation_scale(work: Work) -> None:
    """2 % in layer 1's second half."""
    graph, given = _input_quantization(work, "tower.layers.1.fc1")
    write_scalar(work.pte, graph.field(given, "PerTensorQuant", "scale"), given.scale * 1.02)


@fault("bytes", "a transposition lost in one block", rows=(15,), step="lowering", place=r"vision_encoder\.layers\.1")
def transposition_lost(work: Work) -> None:
    """Before the output projection, tokens and heads stay as they are: the reshape behind it takes what comes."""
    step = work.constants["vision_encoder.tower.layers.1.attention.out.weight"].instruction
    nodes = [found for found in _vision_nodes(work, "XNNStaticTranspose") if found[3] == step]
    graph, node, _, _ = next(found for found in reversed(nodes) if list(found[1].perm) == [0, 2, 1, 3])
    at = graph.items(node, "XNNStaticTranspose", "perm")
    for place, axis in enumerate((0, 1, 2, 3)):
        write_scalar(work.pte, (at + 4 * place, "I"), axis)


@fault(
    "bytes",
    "GELU where the projector has it, another function",
    rows=(48,),
    step="lowering",
    place="XNNGelu|and projector",
)
def another_activation(work: Work) -> None:
    """The tag of one node says hard swish."""
    graph, _, wrapper, _ = _vision_nodes(work, "XNNGelu")[0]
    _rename_node(work, graph, wrapper, "XNNHardswish")


def _set_metadata(work: Work, name: str, value: int) -> None:
    flat, plan = _method(work, name)
    write_scalar(work.pte, flat.field(plan.values[plan.outputs[0]].val, "Int", "int_val"), value)


@fault("bytes", "get_max_seq_len promises 1024 positions", step="lowering", place="1024", quick=STATIC)
def max_seq_len_too_large(work: Work) -> None:
    """The cache has 768."""
    _set_metadata(work, "get_max_seq_len", 1024)


@fault("bytes", "get_eos_ids names another token", step="lowering", place="get_eos_ids", quick=STATIC)
def another_eos(work: Work) -> None:
    """A runner that asks the file would never stop."""
    _set_metadata(work, "get_eos_ids", 13)


@fault("bytes", "get_bos_id names another token", rows=(19,), step="lowering", place="get_bos_id")
def another_bos(work: Work) -> None:
    """A runner that asks the file would begin with </s>."""
    _set_metadata(work, "get_bos_id", 2)


@fault(
    "bytes",
    "a method has another name",
    step="lowering",
    place="token_embedding",
    status=NOT_VERIFIED,
    quick="structure.*",
)
def method_renamed(work: Work) -> None:
    """`token_embeddinG`: runners would not find it."""
    data = work.pte.read_bytes()
    if data.count(b"token_embedding\0") != 1:
        raise ArtifactError("the method's name is not unique in the file", where=work.pte)
    work.pte.write_bytes(data.replace(b"token_embedding\0", b"token_embeddinG\0"))


FAULTS: tuple[Fault, ...] = (
    keys_into_another_cache,
    rows_to_one_place,
    mask_upper_left,
    not_causal,
    keys_for_values,
    cosines_for_sines,
    halves_of_a_head,
    order_of_instructions,
    cache_over_scratch,
    scratch_over_scratch,
    vision_attention_scale,
    epsilon_of_a_vision_norm,
    mean_over_tokens,
    class_token_last,
    zero_point_misread,
    activation_scale,
    transposition_lost,
    another_activation,
    max_seq_len_too_large,
    another_eos,
    another_bos,
    method_renamed,
)
