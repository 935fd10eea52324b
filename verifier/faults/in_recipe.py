"""Faults in the recipe: the checkpoint exported wrongly, by the real exporter with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from verifier.core import upstream
from verifier.families.checkpoint import Checkpoint
from verifier.faults.fault import Fault, Work, fault, patch

MICRO = "micro"
VISION, TEXT = "vision_encoder", "text_decoder"


def _tensors(change: Callable[[str, Tensor], Tensor]) -> None:
    """Let the checkpoint give other tensors: `change` sees key and tensor."""

    def tensor(self: Checkpoint, key: str) -> Tensor:
        return change(key, right(self, key))

    right = patch(Checkpoint, "tensor", tensor)


def _decoder(change: Callable[[Any], None]) -> None:
    """Change the decoder that is traced."""
    from verifier.export import trace

    def build(*given: Any, **named: Any) -> Any:
        decoder = right(*given, **named)
        change(decoder)
        return decoder

    right = patch(trace, "build_decoder", build)


@fault(
    "recipe",
    "one key of the checkpoint is not loaded: a norm stays as it was initialized",
    rows=(1,),
    subject=MICRO,
    step="lowering",
    place=r"layers\.1\.ffn_norm",
)
def key_not_loaded(work: Work) -> None:
    """What `strict=False` let pass."""

    def changed() -> None:
        _tensors(lambda key, t: torch.ones_like(t) if "layers.1.post_attention_layernorm" in key else t)

    work.export(changed, only=TEXT)


@fault("recipe", "the decoder of a sibling checkpoint", rows=(2,), subject=MICRO, step="lowering", place=r"layers\.0")
def sibling_checkpoint(work: Work) -> None:
    """Weights of the same size and statistics."""

    def changed() -> None:
        generator = torch.Generator().manual_seed(1)

        def shuffled(key: str, tensor: Tensor) -> Tensor:
            if "language_model.layers" not in key or tensor.ndim < 2:
                return tensor
            return tensor[torch.randperm(len(tensor), generator=generator)]

        _tensors(shuffled)

    work.export(changed, only=TEXT)


@fault("recipe", "the output head tied to the embedding", rows=(1,), subject=MICRO, step="lowering", place="output")
def tied_head(work: Work) -> None:
    """As in checkpoints that do it."""
    keys = {key.rpartition(".")[0].rpartition(".")[2]: key for key in work.checkpoint.keys}
    table, head = work.checkpoint.tensor(keys["embed_tokens"]), keys["lm_head"]
    work.export(lambda: _tensors(lambda key, tensor: table if key == head else tensor), only=TEXT)


@fault(
    "recipe",
    "gate and up projection of one layer swapped",
    subject=MICRO,
    step="lowering",
    place=r"layers\.1\.feed_forward",
)
def gate_for_up(work: Work) -> None:
    """Two tensors of one shape."""
    names = {key: key.replace("gate_proj", "up_proj") for key in work.checkpoint.keys if "layers.1.mlp.gate" in key}
    names |= {value: key for key, value in names.items()}
    others = {key: work.checkpoint.tensor(other) for key, other in names.items()}
    work.export(lambda: _tensors(others.get), only=TEXT)


@fault(
    "recipe",
    "all weights cast to bf16 before they are quantized",
    rows=(43,),
    subject=MICRO,
    step="lowering",
    place=r"token_embedding|layers\.0|vision_encoder",
)
def cast_everything(work: Work) -> None:
    """33 dB where 120 are due."""
    work.export(lambda: _tensors(lambda _key, tensor: tensor.to(torch.bfloat16).to(tensor.dtype)))


@fault(
    "recipe",
    "int8 ranges taken from flat images",
    rows=(13,),
    step="quantization",
    place="vision_encoder",
    slow=True,
)
def calibrated_on_flat_images(work: Work) -> None:
    """Right for grey pictures."""
    folder = work.folder / "flat"
    folder.mkdir()
    for shade in (120, 128):
        Image.new("RGB", (336, 336), (shade, shade, shade)).save(folder / f"{shade}.png")
    work.export(lambda: None, "--calibration", str(folder))


@fault("recipe", "features of the layer before", rows=(9,), subject=MICRO, step="lowering", place="vision_encoder")
def feature_layer_before(work: Work) -> None:
    """The feature layer subtracted twice."""

    def changed() -> None:
        from verifier.families.llava.vision import VisionTower

        def forward(self: VisionTower, pixels: Tensor) -> Tensor:
            x = self.embed(pixels)
            for layer in list(self.layers)[:-1]:
                x = layer(x)
            return x[:, 1:]

        patch(VisionTower, "forward", forward)

    work.export(changed, only=VISION)


@fault(
    "recipe",
    "layout swapped in one block of the tower",
    rows=(15,),
    subject=MICRO,
    step="lowering",
    place=r"vision_encoder\.layers\.1",
)
def heads_and_width_swapped(work: Work) -> None:
    """The output of the heads is read as head_dim x heads."""

    def changed() -> None:
        from verifier.export import trace

        def build(checkpoint: Checkpoint) -> Any:
            encoder = right(checkpoint)
            attention = encoder.tower.layers[1].attention
            inner: Any = attention.out

            class Swapped(nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.inner = inner

                def forward(self, x: Tensor) -> Tensor:
                    split = x.view(*x.shape[:-1], attention.heads, attention.head_dim)
                    out: Tensor = self.inner(split.transpose(-1, -2).flatten(-2))
                    return out

            attention.out = Swapped()
            return encoder

        right = patch(trace, "build_vision_encoder", build)

    work.export(changed, only=VISION)


@fault("recipe", "the tower's activation in the projector", subject=MICRO, step="lowering", place="vision_encoder")
def quick_gelu_for_gelu(work: Work) -> None:
    """x sigmoid(1.702 x) for x Phi(x): 0.02 apart at most."""

    def changed() -> None:
        from verifier.families.llava.vision import Projector

        def forward(self: Projector, x: Tensor) -> Tensor:
            inner = self.linear_1(x)
            out: Tensor = self.linear_2(inner * torch.sigmoid(1.702 * inner))
            return out

        patch(Projector, "forward", forward)

    work.export(changed, only=VISION)


@fault("recipe", "QuickGELU with 1.7 for 1.702", subject=MICRO, step="lowering", place=r"vision_encoder")
def rounded_quick_gelu(work: Work) -> None:
    """A constant that somebody rounded."""

    def changed() -> None:
        from verifier.families.llava import vision

        patch(vision, "QUICK_GELU", 1.7)

    work.export(changed, only=VISION)


@fault("recipe", "pixels in the order BGR inside the program", subject=MICRO, step="lowering", place="vision_encoder")
def blue_first(work: Work) -> None:
    """Channels flipped before the mean is taken off."""

    def changed() -> None:
        from verifier.families.llava.vision import VisionEncoder

        right = VisionEncoder.normalize
        patch(VisionEncoder, "normalize", lambda self, image: right(self, image.flip(0)))

    work.export(changed, only=VISION)


@fault(
    "recipe",
    "RoPE rotates neighbours instead of halves",
    rows=(27,),
    subject=MICRO,
    step="lowering",
    place="rope|attention",
)
def interleaved_rope(work: Work) -> None:
    """The other convention."""

    def changed() -> None:
        from verifier.families.llava import text

        def arguments(*given: Any, **named: Any) -> Any:
            made = right(*given, **named)
            made.use_hf_rope = False
            return made

        right = patch(text, "_arguments", arguments)

    work.export(changed, only=TEXT)


@fault(
    "recipe",
    "rows of layer 1's cache written one position late",
    rows=(52,),
    subject=MICRO,
    step="lowering",
    place=r"layers\.1\.attention|text_decoder\.unknown",
)
def rows_one_late(work: Work) -> None:
    """Keys and values alike; position 0 is never written. The instruction that adds the 1 comes before all layers."""

    def late(decoder: Any) -> None:
        cache = decoder.layers[1].attention.kv_cache
        right = cache.update
        cache.update = lambda input_pos, k, v: right(input_pos + 1, k, v)

    work.export(lambda: _decoder(late), only=TEXT)


@fault(
    "recipe",
    "the mask of layer 1 shows one token too many",
    rows=(33,),
    subject=MICRO,
    step="lowering",
    place=r"layers\.1\.attention|mask",
)
def mask_one_too_many(work: Work) -> None:
    """Exported without custom attention, where the mask is a table."""

    def shifted(decoder: Any) -> None:
        attention = decoder.layers[1].attention
        attention.register_buffer("mask", torch.ones_like(attention.mask).tril(1), persistent=False)

    work.export(lambda: _decoder(shifted), "--no-use-sdpa-with-kv-cache", only=TEXT)


@fault("recipe", "a residual added with 0.98 for 1", rows=(47,), subject=MICRO, step="lowering", place=r"layers\.1")
def residual_with_alpha(work: Work) -> None:
    """In one feed-forward."""

    def weaker(decoder: Any) -> None:
        inner = decoder.layers[1].feed_forward
        right = inner.forward
        inner.forward = lambda x: right(x) * 0.98

    work.export(lambda: _decoder(weaker), only=TEXT)


@fault("recipe", "a clamp where the model has none", rows=(48,), subject=MICRO, step="lowering", place=r"layers\.1")
def clamp_too_many(work: Work) -> None:
    """What a fusion would do with the limits of another node."""

    def clamped(decoder: Any) -> None:
        inner = decoder.layers[1].feed_forward
        right = inner.forward
        inner.forward = lambda x: right(x).clamp(-1e-3, 1e-3)

    work.export(lambda: _decoder(clamped), only=TEXT)


@fault(
    "recipe",
    "one linear left in fp32",
    rows=(45,),
    subject=MICRO,
    step="lowering",
    place=r"layers\.1\.attention\.wo|text_decoder",
)
def one_linear_not_quantized(work: Work) -> None:
    """Too good, and too large."""

    def changed() -> None:
        from verifier.export import trace

        def quantize(linear: nn.Module, name: str, **named: Any) -> None:
            if name != "layers.1.attention.wo":
                right(linear, name, **named)

        right = patch(trace, "quantize_linear", quantize)

    work.export(changed, only=TEXT)


@fault(
    "recipe",
    "the decoder's small operators are not delegated",
    rows=(49,),
    subject=MICRO,
    step="lowering",
    place="text_decoder",
)
def delegation_lost(work: Work) -> None:
    """The second partitioner takes nothing: the speed is gone, and the linears keep their integers without the scales, 28 dB below the noise."""

    def changed() -> None:
        elu = upstream.XNNPACK_ELU.resolve()
        asked: list[Any] = []

        def partitioner(*given: Any, **named: Any) -> Any:
            second = not named and bool(asked)  # the first is for the linears
            asked.append(named)
            return right(configs=[elu]) if second else right(*given, **named)  # the model has no ELU

        right = patch(upstream.XNNPACK_PARTITIONER.module, "XnnpackPartitioner", partitioner)

    work.export(changed, only=TEXT)


FAULTS: tuple[Fault, ...] = (
    key_not_loaded,
    sibling_checkpoint,
    tied_head,
    gate_for_up,
    cast_everything,
    calibrated_on_flat_images,
    feature_layer_before,
    heads_and_width_swapped,
    quick_gelu_for_gelu,
    rounded_quick_gelu,
    blue_first,
    interleaved_rope,
    rows_one_late,
    mask_one_too_many,
    residual_with_alpha,
    clamp_too_many,
    one_linear_not_quantized,
    delegation_lost,
)
