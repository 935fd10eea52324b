"""What pictures show, read back from them."""

from __future__ import annotations

import base64
import copy
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from verifier.report import plots
from verifier.report.as_json import read_report


@pytest.fixture(scope="module")
def passed(report_folder: Path) -> dict[str, Any]:
    """A report that passed."""
    return read_report(report_folder / "report.json")


def test_depth_is_in_the_order_of_the_program(passed: dict[str, Any]) -> None:
    """Also where failing checks were put first; the failing block is marked, its limit kept."""
    data = copy.deepcopy(passed)
    graph = [check for check in data["checks"] if check["id"] == "layers.graph"]
    wrong = next(check for check in graph if check["case"] == "text_decoder.layers.3.attention")
    wrong.update(verdict="fail", measured={"sqnr_db": 20.6})
    data["checks"].remove(wrong)
    data["checks"].insert(0, wrong)
    known = plots.depth_series(data, "text_decoder")
    names = [block.removeprefix("text_decoder.") for block in known["blocks"]]
    layers = [f"layers.{n}.{part}" for n in range(4) for part in ("attention", "feed_forward")]
    assert names == ["input", *layers, "output"]
    assert list(known["series"]["graph"]) == [f"text_decoder.{name}" for name in (*layers, "output")]
    assert known["bad"] == {"graph": ["text_decoder.layers.3.attention"]}
    drawn = plots.depth(data, "text_decoder")
    assert "layers.3.attention" in drawn
    assert "Over the limit: text_decoder.layers.3.attention" in drawn


def test_pictures_are_svg_with_names_and_own_ids(passed: dict[str, Any]) -> None:
    """Well-formed, described, coloured by the theme; no id stands twice on the page."""
    drawn = [plots.depth(passed, method) for method in ("vision_encoder", "text_decoder")]
    drawn += [plots.streams(passed["figures"]), plots.cache(passed["figures"])]
    ids = []
    for text in drawn:
        root = ElementTree.fromstring(text)
        names = [child.tag.rpartition("}")[2] for child in root]
        assert names[:2] == ["title", "desc"]
        assert all(child.text for child in list(root)[:2])
        assert "var(--ink)" in text
        assert not any(sentinel in text for sentinel in (plots.INK, plots.GRID, plots.BAND, plots.BAD))
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))


def test_map_of_image_tokens_is_one_pixel_each() -> None:
    """Bright where the error is largest, red where there is no number."""
    table: list[list[float | None]] = [[40.0, 10.0], [None, 25.0]]
    held = base64.b64decode(plots.vision_map(table, low_db=10.0, high_db=40.0))
    pixels = np.asarray(Image.open(io.BytesIO(held)).convert("RGB")).astype(int)
    assert pixels.shape == (2, 2, 3)
    assert pixels[0, 0].sum() < pixels[1, 1].sum() < pixels[0, 1].sum()
    assert pixels[1, 0, 0] > 200
    assert pixels[1, 0, 1] < 10


def test_nothing_measured_draws_nothing(passed: dict[str, Any]) -> None:
    """A run of the audit alone has no curves."""
    data = passed | {"checks": [c for c in passed["checks"] if c["id"] == "weights.tensors"], "figures": {}}
    assert plots.depth(data, "text_decoder") == plots.streams({}) == plots.cache({}) == ""
