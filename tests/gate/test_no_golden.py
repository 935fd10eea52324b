"""A checkpoint as a hub has it, without golden data: pictures of the package stand in, and fp32 answers them once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.gate.cases import without_golden_data
from tests.support import EMBEDDED_PTE, verify
from verifier.checks.registry import CHECKS
from verifier.core.records import JsonObject
from verifier.families.registry import open_checkpoint
from verifier.faults.surgery import change_bytes, find_constants
from verifier.gather import goldens
from verifier.golden.kept import KeptAnswers


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """llava_tiny without golden.json, tolerances.json and pictures."""
    return without_golden_data(tmp_path / "bare")


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """The embedded program without its manifest."""
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "llava.pte"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept answers of a user who has none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llava-verifier" / "answers"


@pytest.fixture
def micro_bare(micro_model: Path, tmp_path: Path) -> Path:
    """The random micro model with its program, without golden data."""
    unwanted = shutil.ignore_patterns("golden.json", "images", "*.manifest.json")
    return Path(shutil.copytree(micro_model, tmp_path / "micro", ignore=unwanted))


ANSWERS = "greedy.free,greedy.images,greedy.history,splice.*"
"""Checks of golden answers whose limits are derived."""


def _goldens(model: Path, pte: Path, *words: str, checks: str = ANSWERS) -> tuple[int, JsonObject]:
    """Exit status, and where the golden answers came from."""
    report = model / "report.json"
    report.unlink(missing_ok=True)
    status = verify(pte, "--model", str(model), "--checks", checks, "--json", str(report), *words)
    return status, json.loads(report.read_text())["goldens"] if report.exists() else {}


def test_pictures_of_the_package_stand_in(bare: Path, pte: Path, cache: Path) -> None:
    """A trained checkpoint: its captions are computed once, and nothing the second time."""
    status, made = _goldens(bare, pte)
    assert (status, made["source"], made["images"], made["computed"], made["kept"]) == (0, "package", 4, 4, 0)
    assert len(list(cache.glob("*.json"))) == 4
    status, made = _goldens(bare, pte)
    assert (status, made["computed"], made["kept"], made["cache"]) == (0, 0, 4, str(cache))


def test_random_checkpoint_answers_too(micro_bare: Path, cache: Path) -> None:
    """Random weights say much the same of every picture: no check is left out for that. `--refresh` computes anew."""
    pte = micro_bare / "model.pte"
    assert _goldens(micro_bare, pte) == (
        0,
        {"source": "package", "images": 4, "computed": 4, "kept": 0, "cache": str(cache), "problem": ""},
    )
    status, made = _goldens(micro_bare, pte, "--refresh")
    assert (status, made["computed"], made["kept"]) == (0, 4, 0)


def test_damaged_answer_is_computed_anew(micro_bare: Path, cache: Path) -> None:
    """One of four; the other three are found."""
    _goldens(micro_bare, micro_bare / "model.pte", checks="greedy.free")
    next(cache.glob("*.json")).write_text("{")
    status, made = _goldens(micro_bare, micro_bare / "model.pte", checks="greedy.free")
    assert (status, made["computed"], made["kept"]) == (0, 1, 3)


def test_forged_answer_is_refused_and_removed(
    micro_bare: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole and well-formed entry with other tokens: fp32 is asked in every run. The next run computes it."""
    pte = micro_bare / "model.pte"
    _goldens(micro_bare, pte, checks="greedy.free")
    path = sorted(cache.glob("*.json"))[0]
    ids = json.loads(path.read_text())["ids"]
    KeptAnswers(cache).write(path.stem, (ids[0] ^ 4, *ids[1:]))
    assert _goldens(micro_bare, pte, checks="greedy.free")[0] == 2
    assert "is not the fp32 reference's" in capsys.readouterr().err
    status, made = _goldens(micro_bare, pte, checks="greedy.free")
    assert (status, made["computed"], made["kept"]) == (0, 1, 3)


def test_cache_that_cannot_be_written_stops_nothing(
    micro_bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are computed and used; the report says why they were not kept."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    status, made = _goldens(micro_bare, micro_bare / "model.pte", checks="greedy.free")
    assert (status, made["computed"]) == (0, 4)
    assert "cannot be written" in made["problem"]


def test_program_proposes_the_answers_of_a_large_checkpoint(
    micro_bare: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers by way of a draft, of one that is nonsense, and of none."""
    pte, drafted = micro_bare / "model.pte", list[object]()
    right = goldens.draft_answers

    def watched(*given: Any) -> Any:
        drafted.append(right(*given))
        return drafted[-1]

    def nonsense(_opened: object, samples: Any, room: int) -> list[tuple[int, ...]]:
        return [(0,) * room for _ in samples]

    def kept() -> dict[str, str]:
        _goldens(micro_bare, pte, "--refresh", checks="greedy.free")
        return {path.name: path.read_text() for path in cache.glob("*.json")}

    plain = kept()
    monkeypatch.setattr("verifier.families.streaming.STREAMED_BYTES", 0)
    monkeypatch.setattr(goldens, "draft_answers", watched)
    assert kept() == plain
    assert len(drafted[0]) == 4  # type: ignore[arg-type]
    monkeypatch.setattr(goldens, "draft_answers", nonsense)
    assert kept() == plain


def test_pixels_alone_ask_for_no_answers(bare: Path, pte: Path, cache: Path) -> None:
    """What looks at pictures and nothing else costs no fp32 answer."""
    status, made = _goldens(bare, pte, checks="preprocess.pixels")
    assert (status, made["images"], made["computed"], made["kept"]) == (0, 4, 0, 0)
    assert not cache.exists()


def test_weights_are_verified_without_golden_data(bare: Path, pte: Path) -> None:
    """Nothing in a golden answer is needed to compare bytes: exit 0, and 1 for a changed one."""
    assert verify(pte, "--model", str(bare), "--checks", "weights.*") == 0
    constant = find_constants(pte, open_checkpoint(str(bare)))["text_decoder.norm.weight"].value.constant
    assert constant is not None
    change_bytes(pte, constant, lambda raw: raw ^ 1)
    assert verify(pte, "--model", str(bare), "--checks", "weights.*") == 1


def test_layers_and_cache_are_compared_on_a_picture_of_our_own(bare: Path, pte: Path, tmp_path: Path) -> None:
    """The runtime is compared instruction by instruction; what quantization costs is judged by budgets, as nothing was calibrated."""
    report = tmp_path / "report.json"
    status = verify(pte, "--model", str(bare), "--checks", "layers.*", "--json", str(report))
    results = json.loads(report.read_text())["checks"]
    assert status == 0
    assert {result["verdict"] for result in results} == {"pass"}
    priced = [result["message"] for result in results if result["id"] in ("layers.price", "layers.profile")]
    assert all("default budget" in message for message in priced)


def test_checks_that_need_no_golden_data_are_named_once() -> None:
    """A check of every image needs golden data; one of the bytes or of the layers does not."""
    needing = {check.id for check in CHECKS if check.golden}
    assert {"greedy.golden", "logits.distribution", "splice.tokens"} <= needing
    assert not any(id.startswith(("weights.", "layers.", "kvcache.", "structure.", "mapping.")) for id in needing)
