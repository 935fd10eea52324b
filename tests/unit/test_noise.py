"""What int8 rounding costs a deep decoder: two sound orders of its sums stay within it, a fault does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import row_sqnr_db
from verifier.commands.synthesize import main as synthesize
from verifier.core.types import Recipe
from verifier.families.registry import open_checkpoint, open_family
from verifier.ladder.limits import reordered_limit_db
from verifier.ladder.noise import NOISE_TOKENS, rounding_noise_db
from verifier.ladder.quantized import Form, Rounding, build_quantized_decoder
from verifier.synth.geometries import NAMED

WIDTH, LAYERS, TOKENS = 1024, 12, 48
ULP = 2.0**-23
SEEDS = range(4)


@pytest.fixture(scope="module")
def rung(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Rounding]:
    """The quantized rung of a deep decoder, and its rounding."""
    root = tmp_path_factory.mktemp("noise")
    config = json.loads(json.dumps(NAMED["wide"]))
    config["vision_config"] |= {"image_size": 28, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 1}
    config["text_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "num_hidden_layers": LAYERS,
        "vocab_size": 1088,
    }
    config |= {"image_token_index": 1024, "image_seq_length": 4, "pad_token_id": 1025}
    (root / "asked.json").write_text(json.dumps(config))
    assert synthesize(["--geometry", str(root / "asked.json"), "--out", str(root / "model"), "--quiet"]) == 0
    rounding = Rounding()
    recipe = Recipe(max_seq_len=64, max_context_len=64, group_size=128)
    return build_quantized_decoder(open_family(open_checkpoint(root / "model")), Form(recipe), rounding), rounding


@pytest.fixture
def nudges(rung: tuple[Any, Rounding]) -> Iterator[torch.Generator]:
    """Norms round otherwise, by up to two units in the last place, as often as they are asked."""
    generator, handles = torch.Generator(), []

    def nudge(_module: object, _inputs: object, out: Tensor) -> Tensor:
        return out * (1 + ULP * torch.randint(-2, 3, out.shape, generator=generator))

    for layer in rung[0].layers:
        handles += [layer.get_submodule(n).register_forward_hook(nudge) for n in ("attention_norm", "ffn_norm")]
    yield generator
    for handle in handles:
        handle.remove()


def _embeddings(seed: int, tokens: int) -> Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def _logits(decoder: Any, x: Tensor) -> Any:
    """[S, V]."""
    position = torch.tensor([0])
    with torch.no_grad():
        cos, sin = decoder.rope.get_freqs(position, x.shape[1])
        for layer in decoder.layers:
            x, _ = layer(x, cos, sin, {"input_pos": position})
        return decoder.output(decoder.norm(x))[0].numpy()


def test_orders_of_sums_stay_within_the_noise(rung: tuple[Any, Rounding], nudges: torch.Generator) -> None:
    """Every token of every pair of runs, also tokens that it was not measured on; and the limit is not far from what they keep."""
    decoder, rounding = rung
    limit = reordered_limit_db(rounding_noise_db(decoder, rounding, _embeddings(99, NOISE_TOKENS)))
    kept = []
    for seed in SEEDS:
        nudges.manual_seed(seed)
        x = _embeddings(seed, TOKENS)
        pair = (_logits(decoder, x), _logits(decoder, x))
        kept.append(float(row_sqnr_db(actual=pair[0], expected=pair[1]).min()))
    assert limit <= min(kept) < limit + 10


def test_fault_is_not_excused_by_noise(rung: tuple[Any, Rounding], nudges: torch.Generator) -> None:
    """A second chunk that does not see the first, in any of its tokens: below the limit, though rounding is at work as well."""
    decoder, rounding = rung
    limit = reordered_limit_db(rounding_noise_db(decoder, rounding, _embeddings(99, NOISE_TOKENS)))
    for seed in SEEDS:
        nudges.manual_seed(seed)
        x = _embeddings(seed, TOKENS)
        wrong, right = _logits(decoder, x[:, TOKENS // 2 :]), _logits(decoder, x)[TOKENS // 2 :]
        assert row_sqnr_db(actual=wrong, expected=right).max() < limit
