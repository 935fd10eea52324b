"""Constants of other exporters' files, without a manifest: all explained, and a fault in them named exactly."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import OPTIMUM_PTE, UPSTREAM_PTE
from verifier.artifact.program import open_artifact
from verifier.audit.infer import infer_recipe
from verifier.audit.run import Audit, audit_weights
from verifier.families.conventions import recognize
from verifier.families.registry import open_checkpoint, open_family
from verifier.faults.surgery import change_bytes, find_constants

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


def test_recipe_is_that_of_the_export() -> None:
    """Groups of 128 by HQQ in both; optimum's head has groups of 32, and its tower is fp32."""
    recipes = {}
    for name, path in FILES.items():
        artifact = open_artifact(path)
        recipes[name] = infer_recipe(artifact, open_family(open_checkpoint(), recognize(artifact)))
    both = [(r.group_size, r.quantizer, r.embedding_bits, r.embedding_group_size) for r in recipes.values()]
    assert both == [(128, "hqq", 8, 32)] * 2
    assert [(r.head_group_size, r.vision) for r in recipes.values()] == [(32, "fp32"), (0, "int8")]


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
