"""The fp32 rung of the checkpoint: Hugging Face's own model, whole or one decoder layer at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.core import upstream
from verifier.core.errors import CheckpointError
from verifier.families.answering import image_tokens, splice
from verifier.families.checkpoint import Checkpoint
from verifier.families.definition import Definition
from verifier.families.llava.keymap import TEXT, canonical, is_buffer
from verifier.families.samples import LayerPair, Sample


def load_hugging_face(checkpoint: Checkpoint, *, layers: int | None = None) -> Any:
    """`LlavaForConditionalGeneration` in fp32 from the checkpoint's folder, offline, with the first `layers` decoder layers only if that
    is given. Raises `CheckpointError`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    logging = upstream.TRANSFORMERS_LOGGING.resolve()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        config = LlavaConfig.from_pretrained(checkpoint.directory)
        if layers is not None:
            config.text_config.num_hidden_layers = layers
        made = LlavaForConditionalGeneration.from_pretrained(checkpoint.directory, config=config, dtype=torch.float32)
        return made.eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            "Hugging Face cannot load the checkpoint", got=error, where=checkpoint.directory
        ) from error


def _image_tokens(model: Any, definition: Definition, sample: Sample) -> tuple[Tensor, Tensor]:
    """Image tokens by the definition [1, P, D] and by Hugging Face [P, D]."""
    expected = model.get_image_features(pixel_values=definition.encoder.normalize(torch.from_numpy(sample.image)))
    expected = getattr(expected, "pooler_output", expected)
    expected = expected[0] if isinstance(expected, (list, tuple)) else expected
    vision = image_tokens(definition, sample)
    return vision, expected.reshape(vision[0].shape)


def compare_with_hugging_face(model: Any, definition: Definition, sample: Sample) -> list[LayerPair]:
    """Image tokens, the output of every decoder layer, and logits: definition (actual) against Hugging Face (expected)."""
    with torch.no_grad():
        vision, expected = _image_tokens(model, definition, sample)
        pairs = [("vision", vision[0], expected)]
        embeddings = splice(definition, sample, vision, sample.golden.ids)
        hidden, states = definition.hidden(embeddings)
        expected_states: list[Tensor] = []
        layers = model.model.language_model.layers
        handles = [
            layer.register_forward_hook(
                lambda _m, _i, out: expected_states.append(out[0] if isinstance(out, tuple) else out)
            )
            for layer in layers
        ]
        try:
            answer = model(inputs_embeds=embeddings, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        pairs += [(f"layers.{i}", a, e) for i, (a, e) in enumerate(zip(states, expected_states, strict=True))]
        pairs.append(("logits", definition.decoder.output(hidden), answer.logits))
    return [LayerPair(name, np.asarray(a), np.asarray(e)) for name, a, e in pairs]


COMPARED_TOKENS = 100
"""Tokens of a conversation that a large model is compared on: the text before the image, and the image's first rows."""


def compare_layer_by_layer(checkpoint: Checkpoint, definition: Definition, sample: Sample) -> list[LayerPair]:
    """As `compare_with_hugging_face`, for a model that does not fit: Hugging Face's own modules, one decoder layer at a time.

    Everything but the layers is loaded by `from_pretrained`; a layer by the names that its own module has, strictly. Both rungs
    run from the same embeddings on, over the first `COMPARED_TOKENS` tokens. Raises `CheckpointError`.
    """
    model = load_hugging_face(checkpoint, layers=0)
    with torch.no_grad():
        vision, expected = _image_tokens(model, definition, sample)
        pairs = [LayerPair("vision", np.asarray(vision[0]), np.asarray(expected))]
        embeddings = splice(definition, sample, vision, sample.golden.ids)[:, :COMPARED_TOKENS]
        theirs = _HuggingFaceLayers(checkpoint, model)
        state, turned = embeddings, theirs.rotation(embeddings.shape[1])

        def observe(_sequence: int, number: int, actual: Tensor) -> None:
            nonlocal state
            state = theirs.run(number, state, turned)
            pairs.append(LayerPair(f"layers.{number}", np.asarray(actual), np.asarray(state)))

        (hidden,) = definition.hidden_each([embeddings], starts=[0], observe=observe)
        actual = definition.decoder.output(hidden)
        pairs.append(
            LayerPair("logits", np.asarray(actual), np.asarray(model.lm_head(model.model.language_model.norm(state))))
        )
    return pairs


def compare_samples(
    checkpoint: Checkpoint, definition: Definition, samples: Sequence[Sample], *, layer_by_layer: bool
) -> Iterator[list[LayerPair]]:
    """The activations of each sample, with the whole model in memory or one decoder layer at a time. Raises `CheckpointError`."""
    if layer_by_layer:
        yield from (compare_layer_by_layer(checkpoint, definition, sample) for sample in samples)
        return
    model = load_hugging_face(checkpoint)
    yield from (compare_with_hugging_face(model, definition, sample) for sample in samples)


class _HuggingFaceLayers:
    """Decoder layers of `transformers`, made from the checkpoint when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.checkpoint, self.config = checkpoint, model.config.text_config
        self.rotary = model.model.language_model.rotary_emb
        self.memory: dict[str, Tensor] = {}  # of one layer's weights, used again by the next one

    def rotation(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first positions."""
        turned: tuple[Tensor, Tensor] = self.rotary(torch.zeros(1, tokens, 1), torch.arange(tokens)[None])
        return turned

    def run(self, number: int, state: Tensor, turned: tuple[Tensor, Tensor]) -> Tensor:
        """[1, S, D] through layer `number`, causally. Raises `CheckpointError` if its tensors are not those of the module."""
        prefix = f"{TEXT}layers.{number}."
        keys = {canonical(key): key for key in self.checkpoint.keys if not is_buffer(key)}
        names = {spelled.removeprefix(prefix): key for spelled, key in keys.items() if spelled.startswith(prefix)}
        with torch.device("meta"):
            layer = upstream.LLAMA_LAYER.resolve()(self.config, layer_idx=0).eval()
        weights = {name: self._held(name, key) for name, key in names.items()}
        try:
            layer.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"layer {number} is not Hugging Face's", got=error, where=self.checkpoint.directory
            ) from error
        made = layer(state, attention_mask=None, position_embeddings=turned)
        out: Tensor = made[0] if isinstance(made, tuple) else made
        return out

    def _held(self, name: str, key: str) -> Tensor:
        tensor = self.checkpoint.tensor(key)
        return self.memory.setdefault(name, torch.empty(0)).resize_(tensor.shape).copy_(tensor)
