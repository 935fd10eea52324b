"""Reports are strict JSON and well-formed XML whatever a check measured, and show pictures as the model sees them."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from verifier.core.errors import UsageError
from verifier.core.files import replacing
from verifier.core.python import ROOT
from verifier.families.llava.vision import VisionEncoder
from verifier.families.registry import open_checkpoint
from verifier.measures.pixels import thumbnail
from verifier.report.as_json import finite, schema


def test_finite_replaces_what_json_cannot_say() -> None:
    """NaN and infinities become null with a reason; numpy scalars become Python's."""
    data = finite({"a": float("nan"), "b": [np.float32("inf"), np.int64(3)], "c": (1.5, None, True)})
    assert json.loads(json.dumps(data, allow_nan=False)) == {
        "a": {"value": None, "reason": "NaN"},
        "b": [{"value": None, "reason": "infinity"}, 3],
        "c": [1.5, None, True],
    }


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path: pytest.TempPathFactory) -> None:
    """Nothing half-written, nothing lost, no temporary file left."""
    path = tmp_path / "report.json"  # type: ignore[operator]
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]
    assert path.read_text() == "old"


def test_replacing_refuses_an_unwritable_folder(tmp_path: pytest.TempPathFactory) -> None:
    """A file where a folder should be."""
    blocker = tmp_path / "file"  # type: ignore[operator]
    blocker.write_text("")
    with pytest.raises(UsageError, match="cannot be written"), replacing(blocker / "x.json"):
        pass


def test_thumbnail_shows_margins_as_the_encoder_pads_them() -> None:
    """Black, with an odd pixel right and below: the frame that the exported encoder makes of the same picture."""
    image, side_px = torch.full((3, 101, 151), 255, dtype=torch.uint8), 224
    picture = Image.open(io.BytesIO(base64.b64decode(thumbnail(image.numpy(), side_px))))
    shown = np.asarray(picture, np.float32).mean(-1)
    encoder = VisionEncoder(open_checkpoint().geometry)
    encoder.side_px = side_px
    padded = encoder.normalize(image)[0] * encoder.std + encoder.mean
    assert np.abs(shown - 255 * padded.mean(0).numpy()).max() < 64  # what JPEG leaves beside an edge
    assert shown.max() > 250


def test_schema_knows_whom_checks_accuse() -> None:
    """A report of a check that accuses somebody new could not be read again."""
    sources = (path.read_text() for path in (Path(ROOT) / "verifier").rglob("*.py"))
    accused = {name for text in sources for name in re.findall(r'accuses="(\w+)"', text)}
    checks = schema()["properties"]["checks"]["items"]["properties"]
    assert accused and accused <= set(checks["accuses"]["enum"])
