"""Constants of other exporters' files, without a manifest: all explained, and a fault in them named exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import OPTIMUM_PTE, UPSTREAM_PTE
from verifier.artifact.nibbles import pack_nibbles
from verifier.artifact.plan import TensorValue
from verifier.artifact.program import open_artifact
from verifier.artifact.storage import Span
from verifier.audit.expected import expected_contents
from verifier.audit.infer import infer_recipe
from verifier.audit.run import Audit, audit_weights
from verifier.backends.backend import GraphValue
from verifier.backends.quantization import PerGroup
from verifier.backends.xnnpack.context import channel_scales
from verifier.families.conventions import recognize
from verifier.families.registry import open_checkpoint, open_family
from verifier.faults.surgery import change_bytes, find_constants
from verifier.interpret.machine import constant_tensor
from verifier.measures.against_fp32 import VocabularyError
from verifier.measures.vocabulary import measure_vocabulary, own_table

pytestmark = pytest.mark.xdist_group("foreign")
FILES = {"optimum": OPTIMUM_PTE, "upstream": UPSTREAM_PTE}
WQ = "text_decoder.layers.1.attention.wq.weight"


def _audit(path: Path) -> Audit:
    artifact = open_artifact(path)
    family = open_family(open_checkpoint(), recognize(artifact))
    return audit_weights(artifact, family, infer_recipe(artifact, family), declared=False)


@pytest.fixture(scope="module", params=FILES)
def audit(request: pytest.FixtureRequest) -> Audit:
    """The audit of a sound file."""
    return _audit(FILES[request.param])


def test_sound_file_is_explained_whole(audit: Audit) -> None:
    """Every constant equals what its scheme makes of the checkpoint, and every parameter is there."""
    assert [(c.name, c.reason) for c in audit.constants if c.reason or not c.explained] == []
    held = {parameter.name for parameter in audit.parameters if parameter is not None}
    assert held == {parameter.name for parameter in audit.source.family.parameters()}
    assert audit.misplaced == ()


def test_scales_of_another_vocabulary_have_another_shape(audit: Audit) -> None:
    """They are expected as they are, and the comparison says so."""
    scales = next(c for c in audit.inventory if c.role == "embedding scales")
    assert isinstance(scales.value, TensorValue)
    other = replace(scales, value=replace(scales.value, sizes=(320, 1)))
    expected = expected_contents(other, None, audit.source)
    assert expected is not None
    assert expected.values.shape == (1088, 8)


def test_recipe_is_that_of_the_export() -> None:
    """Groups of 128 by HQQ in both; optimum's head has groups of 32, and its tower is fp32."""
    recipes = {}
    for name, path in FILES.items():
        artifact = open_artifact(path)
        recipes[name] = infer_recipe(artifact, open_family(open_checkpoint(), recognize(artifact)))
    both = [(r.group_size, r.quantizer, r.embedding_bits, r.embedding_group_size) for r in recipes.values()]
    assert both == [(128, "hqq", 8, 32)] * 2
    assert [(r.head_group_size, r.vision) for r in recipes.values()] == [(32, "fp32"), (0, "int8")]


@pytest.fixture(scope="module")
def own_scales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's file with the integers of a quantizer that nobody knows: the nearest at other scales, in the decoder's linears and in the table."""
    path = Path(shutil.copy(UPSTREAM_PTE, tmp_path_factory.mktemp("own") / "own.pte"))
    storage, checkpoint = open_artifact(UPSTREAM_PTE).storage, open_checkpoint()
    keys = {parameter.name: parameter.key for parameter in open_family(checkpoint).parameters()}
    for name, constant in find_constants(path, checkpoint).items():
        weight, value = checkpoint.tensor(keys[name]).float(), constant.value
        if isinstance(value, GraphValue) and isinstance(value.quantization, PerGroup):
            scales = (channel_scales(value, storage) * 0.97).to(torch.bfloat16)
            integers = _nearest(weight, scales.float(), -8, 7)
            _write(path, value.constant, pack_nibbles(integers, low_first=True))
            _write(path, value.quantization.scales, scales.view(torch.int16).numpy())
        elif constant.scales is not None:
            table = constant_tensor(constant.scales, storage) * 1.01
            _write(path, value.constant, _nearest(weight, table, -128, 127))
            _write(path, constant.scales.constant, table.numpy())
    return path


def _nearest(weight: torch.Tensor, scales: torch.Tensor, low: int, high: int) -> Any:
    steps = scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    return (weight / steps).round().clamp(low, high).to(torch.int8).numpy()


def _write(path: Path, span: Span | None, contents: Any) -> None:
    assert span is not None
    change_bytes(path, span, lambda _old: contents.reshape(-1))


def test_scales_that_nobody_knows_are_noted(own_scales: Path) -> None:
    """Nothing is accused: every integer is the nearest; the message names the nearest known quantizer."""
    audit = _audit(own_scales)
    assert [(c.name, c.reason) for c in audit.constants if c.reason or not c.explained] == []
    noted = {c.name: c.noted for c in audit.constants if c.noted}
    assert {WQ, "token_embedding.weight", "token_embedding.embedding_scales_0"} <= noted.keys()
    assert "of its integers" in noted[WQ]


def test_table_of_unknown_scales_is_what_the_program_has_to_give(own_scales: Path) -> None:
    """Half a step beside it is too far, and its own rounding is not."""
    artifact = open_artifact(own_scales)
    audit, table = _audit(own_scales), open_family(open_checkpoint()).embedding_table().numpy()
    own = own_table(artifact, audit)
    assert own is not None
    moved = own.copy()
    moved[7, 3] += np.copysign(np.abs(table[7, :32]).max() / 127.5, own[7, 3] - table[7, 3])
    scheme = audit.source.scheme("token_embedding.weight")
    right, wrong = (measure_vocabulary(actual, table, scheme, "", own) for actual in (own, moved))
    assert isinstance(right, VocabularyError) and isinstance(wrong, VocabularyError)
    assert (right.rows_off, wrong.rows_off, wrong.index) == (0, 1, (7, 3))
    assert own_table(open_artifact(UPSTREAM_PTE), _audit(UPSTREAM_PTE)) is None


def test_fault_among_unknown_scales_is_named(own_scales: Path, tmp_path: Path) -> None:
    """One integer two steps off is not the nearest any more, in a linear and in the table."""
    victim = Path(shutil.copy(own_scales, tmp_path / "victim.pte"))
    constants = find_constants(victim, open_checkpoint())
    _change(victim, constants[WQ].value.constant, lambda raw: raw ^ np.uint8(4) * (np.arange(raw.size) == 1000))
    _change(victim, constants["token_embedding.weight"].value.constant, _two_more)
    wrong = {c.name: c.wrong for c in _audit(victim).constants if c.reason}
    assert wrong == {WQ: 1, "token_embedding.weight": 1}


def _two_more(raw: Any) -> Any:
    signed = raw.view(np.int8)
    signed[int(np.flatnonzero(np.abs(signed.astype(int)) < 100)[500])] += 2
    return signed


def _change(path: Path, span: Span | None, change: Callable[[Any], Any]) -> None:
    assert span is not None
    change_bytes(path, span, change)


def _nibble(raw: Any) -> Any:
    at = int(np.flatnonzero((raw & 15) < 15)[1000])
    raw[at] += 1
    return raw


def _swapped_rows(raw: Any) -> Any:
    rows = raw.reshape(256, -1)
    rows[[10, 20]] = rows[[20, 10]]
    return rows


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("of_scales", "change"), [(False, _nibble), (True, _swapped_rows)], ids=["one nibble", "two rows of scales swapped"]
)
def test_fault_in_one_tensor_is_named(name: str, of_scales: bool, change: Callable[[Any], Any], tmp_path: Path) -> None:
    """That tensor alone is wrong."""
    victim = Path(shutil.copy(FILES[name], tmp_path / "victim.pte"))
    value: Any = find_constants(victim, open_checkpoint())[WQ].value
    change_bytes(victim, value.quantization.scales if of_scales else value.constant, change)
    assert [c.name for c in _audit(victim).constants if c.reason] == [WQ]
