"""Golden data belongs to one checkpoint, and bands judge in the right direction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifier.core.errors import GoldenError
from verifier.core.files import sha256_of_file
from verifier.families.checkpoint import EMBEDDED
from verifier.families.registry import open_checkpoint
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.golden.bands import Band, load_tolerances
from verifier.golden.records import load_golden


def test_band_allows_a_margin_on_the_bad_side() -> None:
    """SQNR may fall by the margin, KL may rise by it; an unknown case has no bound."""
    assert Band("x_db", 1, {"a": 20.0}, 2.0).allowed("a") == 18.0
    assert Band("kl", -1, {"a": 0.1}, 0.05).allowed("a") == pytest.approx(0.15)
    assert Band("kl", -1, {"a": 0.1}, 0.05).allowed("b") is None


def test_golden_set_holds_what_was_promised() -> None:
    """24 images or more; square, wide, tall, odd; single-attribute pairs; a blank; four photographs; bytes unchanged."""
    golden = load_golden(EMBEDDED, open_checkpoint().sha256)
    kinds = [image.kind for image in golden.images]
    assert len(golden.images) >= 24
    assert kinds.count("photo") >= 4
    assert {"blank", "pair", "square", "wide", "tall", "odd"} <= set(kinds)
    assert all(sha256_of_file(image.path) == image.sha256 for image in golden.images)
    texts = {image.name: image.text for image in golden.images}
    pairs = [name for name in texts if name.startswith("pair_") and name != "pair_base"]
    assert len(pairs) == 6
    assert len({texts[name] for name in ("pair_base", *pairs)}) == 7


def test_golden_of_another_checkpoint_is_refused() -> None:
    """By SHA-256, with what to do."""
    with pytest.raises(GoldenError, match="belongs to another checkpoint"):
        load_golden(EMBEDDED, "0" * 64)


def test_uncalibrated_recipe_is_refused() -> None:
    """The message says how to calibrate."""
    with pytest.raises(GoldenError, match=r"(?s)never calibrated.*verifier\.calibrate"):
        load_tolerances(EMBEDDED, open_checkpoint().sha256, "8da4w-g4096")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"schema": "verifier.golden/1", "checkpoint_sha256": NaN}',
        '{"schema": "other/9"}',
        '{"schema": "verifier.golden/1", "checkpoint_sha256": "x"}',
    ],
)
def test_damaged_golden_data_is_refused(tmp_path: Path, text: str) -> None:
    """Not JSON, not an object, another schema, fields missing."""
    (tmp_path / "golden.json").write_text(text)
    with pytest.raises(GoldenError):
        load_golden(tmp_path, "x")


def test_golden_images_stay_in_their_folder(tmp_path: Path) -> None:
    """No path escapes."""
    image = {
        "name": "a",
        "file": "../../etc/passwd",
        "sha256": "",
        "kind": "x",
        "question": "",
        "ids": [1],
        "margins": [1.0],
        "text": "",
    }
    (tmp_path / "golden.json").write_text(
        json.dumps({"schema": "verifier.golden/1", "checkpoint_sha256": "x", "images": [image]})
    )
    with pytest.raises(GoldenError, match="outside its folder"):
        load_golden(tmp_path, "x")


def test_golden_data_says_what_prompts_it_answers(tmp_path: Path) -> None:
    """The rule is read; files from before it was recorded have none; anything but an object is refused."""
    assert load_golden(EMBEDDED, open_checkpoint().sha256).prompt_rule == Tokenizer(EMBEDDED).rule.as_json()
    saved = json.loads((EMBEDDED / "golden.json").read_text())
    for rule, expected in ((None, None), ("none", GoldenError)):
        saved["prompt_rule"] = rule
        (tmp_path / "golden.json").write_text(json.dumps(saved))
        if expected is None:
            assert load_golden(tmp_path, saved["checkpoint_sha256"]).prompt_rule is None
        else:
            with pytest.raises(expected, match="prompt_rule"):
                load_golden(tmp_path, saved["checkpoint_sha256"])
