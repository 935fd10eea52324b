"""The model while it learns: head starts for its position tables, probes on every layer, and its two losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from golden.llava_tiny.make.geometry import tiny_config
from golden.llava_tiny.make.lessons import ATTRIBUTES, CELLS, PLACES, Batch
from golden.llava_tiny.make.scenes import PATCH_PX, SIDE_PX
from verifier.core import upstream

# From which vision layer on an attribute is read: near things first.
FIRST_LAYER = {"colour": 0, "size": 1, "shape": 1, "role": 3, "background": 3}
WIDTH = 256


def _plain_attention(  # noqa: PLR0917  the signature is the framework's
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """Softmax attention without the subtraction of the maximum: twice as fast to train on a CPU as the flash kernel."""
    scores = ((query * scaling) @ key.transpose(-1, -2)).clamp(max=60)
    weights = scores.exp()
    return ((weights @ value) / weights.sum(-1, keepdim=True)).transpose(1, 2).contiguous(), None


def _start_from_waves(positions: Tensor) -> None:
    """Fill [577, D] with sines and cosines of row and column, as strong as the patches: neighbours then find each other."""
    cells, quarter = SIDE_PX // PATCH_PX, positions.shape[1] // 4
    frequency = 2.0 ** torch.linspace(-4, 1.5, quarter)
    angle = torch.arange(cells)[:, None] * frequency
    wave = 0.6 * torch.cat([angle.sin(), angle.cos()], dim=1)
    rows, columns = wave[:, None].expand(-1, cells, -1), wave[None].expand(cells, -1, -1)
    with torch.no_grad():
        positions[1:] = torch.cat([rows, columns], dim=2).flatten(0, 1)


def _look_around(tower: nn.Module, layers: int = 3) -> None:
    """Let each head of the first layers begin by looking at one neighbour, as a convolution would.

    Query and key read the same waves of row and column; the query's are turned by a shift, so their product peaks
    where the key lies that far away (d'Ascoli et al. 2021, ConViT, with sines for its quadratic encoding). Without it
    a transformer of this size needs several times as many samples before patches gather into shapes.
    """
    width, heads = tower.config.hidden_size, tower.config.num_attention_heads
    head, quarter = width // heads, width // 4
    frequency = 2.0 ** torch.linspace(-4, 1.5, quarter)
    used = torch.linspace(quarter // 3, quarter - 1, head // 4).round().long()  # waves of 2 to 40 patches
    for number, layer in enumerate(tower.encoder.layers[:layers]):
        reach = number + 1
        shifts = ((-reach, 0), (reach, 0), (0, -reach), (0, reach))
        query, key = torch.zeros(width, width), torch.zeros(width, width)
        for index in range(heads):
            for axis, shift in enumerate(shifts[index % 4]):
                for place, wave in enumerate(used):
                    sine, cosine = 2 * axis * quarter + wave, (2 * axis + 1) * quarter + wave
                    row = index * head + axis * head // 2 + 2 * place
                    angle = frequency[wave] * shift
                    query[row, sine], query[row, cosine] = angle.cos(), angle.sin()
                    query[row + 1, cosine], query[row + 1, sine] = angle.cos(), -angle.sin()
                    key[row, sine] = key[row + 1, cosine] = 1.0
        with torch.no_grad():
            layer.self_attn.q_proj.weight.add_(2.5 * query)
            layer.self_attn.k_proj.weight.add_(2.5 * key)


upstream.ATTENTION_FUNCTIONS.resolve()["plain"] = _plain_attention


class Probes(nn.Module):
    """Linear readings of one layer's image tokens."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.attributes = nn.ModuleDict(
            {n: nn.Linear(width, c) for n, c in ATTRIBUTES.items() if layer >= FIRST_LAYER[n]}
        )
        self.place = nn.Linear(width, PLACES) if layer >= 1 else None
        self.cells = nn.Linear(width, CELLS * CELLS)

    def forward(self, tokens: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss, objects weighed twice the ground, and the accuracy on object patches."""
        tokens = functional.layer_norm(tokens.float(), tokens.shape[-1:])
        inside, figures, losses = batch.labels["role"] > 0, {}, []
        outline = functional.binary_cross_entropy_with_logits(
            self.cells(tokens).float(), batch.cells, reduction="none"
        ).mean(-1)
        losses.append(2 * outline[inside].mean() + outline[~inside].mean())
        figures["cells"] = outline[inside].mean().item()
        if self.place is not None:
            error = (self.place(tokens).float() - batch.places)[inside].abs().mean()
            losses.append(2 * error)
            figures["place"] = error.item()
        for name, probe in self.attributes.items():
            logits = probe(tokens).float()
            loss = functional.cross_entropy(
                logits.flatten(0, 1), batch.labels[name].flatten(), reduction="none"
            ).view_as(inside)
            losses.append(loss[inside].mean() + 0.5 * loss[~inside].mean())
            figures[name] = (logits.argmax(-1) == batch.labels[name])[inside].float().mean().item()
        return torch.stack(losses).mean(), figures


class Student(nn.Module):
    """The model and, for training alone, probes on every vision layer and on the image tokens."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.llava = LlavaForConditionalGeneration(tiny_config())
        tower = self.llava.model.vision_tower
        tower.config._attn_implementation = "plain"
        _start_from_waves(tower.embeddings.position_embedding.weight)
        _look_around(tower)
        used = len(tower.encoder.layers) - 1
        self.probes = nn.ModuleList(
            [*(Probes(tower.config.hidden_size, layer) for layer in range(used)), Probes(WIDTH, used)]
        )

    def image_tokens(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, 336, 336] -> patches after each layer [B, 576, 128], then image tokens [B, 576, 256].

        The last vision layer, which LLaVA does not use, is not run.
        """
        tower = self.llava.model.vision_tower
        hidden, states = tower.pre_layrnorm(tower.embeddings(pixels)), []
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
            states.append(hidden[:, 1:])
        return [*states, self.llava.model.multi_modal_projector(states[-1])]

    def probe_loss(self, states: list[Tensor], batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Mean loss of all probes; figures of the image tokens'."""
        readings = [probe(state, batch) for probe, state in zip(self.probes, states, strict=True)]
        return torch.stack([loss for loss, _ in readings]).mean(), readings[-1][1]

    def caption_loss(self, tokens: Tensor, batch: Batch, kept: int) -> tuple[Tensor, float]:
        """Cross-entropy of the answer and the share of exact teacher-forced captions."""
        size = len(tokens)
        position = torch.arange(576).expand(size, -1)
        if kept < 576:  # prefer object patches, fill up with random ground
            score = torch.rand(size, 576) + (batch.labels["role"] > 0) * 0.7
            position = score.topk(kept, dim=1).indices.sort(dim=1).values
            tokens = tokens.gather(1, position[..., None].expand(-1, -1, WIDTH))
        embed = self.llava.model.language_model.embed_tokens
        answers, start = batch.answers, len(batch.before)
        inputs = answers[:, :-1].clamp(min=0)
        before, after = (embed(torch.tensor(ids)).expand(size, -1, -1) for ids in (batch.before, batch.after))
        hidden = torch.cat([before, tokens, after, embed(inputs)], dim=1)
        tail = torch.arange(len(batch.after) + inputs.shape[1]).expand(size, -1) + start + 576
        positions = torch.cat([torch.arange(start).expand(size, -1), position + start, tail], dim=1)
        mask = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).tril().expand(size, 1, -1, -1)
        hidden = self.llava.model.language_model(
            inputs_embeds=hidden, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        logits = self.llava.lm_head(hidden[:, -answers.shape[1] :]).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), answers.flatten(), ignore_index=-100)
        right = (logits.argmax(-1) == answers) | (answers < 0)
        return loss, right.all(1).float().mean().item()
