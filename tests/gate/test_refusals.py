"""What cannot be verified is refused: exit status 2, one clear message, nothing left behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support import EMBEDDED_PTE, verify
from verifier.artifact.program import Artifact, TensorFacts
from verifier.commands.export import main as export_main
from verifier.commands.verify import main
from verifier.export.manifest import manifest_path
from verifier.families.checkpoint import EMBEDDED
from verifier.families.conventions import CONVENTIONS
from verifier.gather import opening


def _refused(capsys: pytest.CaptureFixture[str], status: int, *said: str) -> None:
    error = capsys.readouterr().err
    assert status == 2, error
    assert "NOT VERIFIED" in error
    assert "Traceback" not in error
    for words in said:
        assert words in error


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """A copy of the embedded program with its manifest, to be damaged."""
    shutil.copy(manifest_path(EMBEDDED_PTE), tmp_path / "llava.manifest.json")
    return Path(shutil.copy(EMBEDDED_PTE, tmp_path / "llava.pte"))


def test_missing_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No such file."""
    _refused(capsys, verify(tmp_path / "no.pte"), "no such file", "verifier.export_llava")


def test_folder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A folder is not a program."""
    _refused(capsys, verify(tmp_path), "is a folder")


@pytest.mark.parametrize("size", [0, 3, 30, 60, 4000, 300_000, -200_000, -1])
def test_truncated_file_is_refused(capsys: pytest.CaptureFixture[str], pte: Path, size: int) -> None:
    """At several places: before the header, in it, in the program, in the constants, one byte short."""
    data = pte.read_bytes()
    pte.write_bytes(data[:size])
    _refused(
        capsys,
        verify(pte),
        "the file is empty" if size == 0 else "not an ExecuTorch program" if size < 40 and size > 0 else "truncated",
    )


def test_program_without_the_methods_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A sound ExecuTorch program of something else: its methods are listed, the missing ones named."""
    import torch
    from executorch.exir import to_edge

    program = to_edge(torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))).to_executorch()
    (tmp_path / "relu.pte").write_bytes(program.buffer)
    _refused(capsys, verify(tmp_path / "relu.pte"), "not a LLaVA: no method vision_encoder", "got: forward")


@pytest.mark.parametrize("head", [b"", b"\0\0\0\0ET12eh00"])
def test_random_bytes_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, head: bytes) -> None:
    """Noise, and noise behind the right magic."""
    path = tmp_path / "noise.pte"
    path.write_bytes(head + bytes(range(7, 250)) * 400)
    _refused(capsys, verify(path), "ExecuTorch program" if not head else "header is damaged")


def test_damaged_program_is_refused(capsys: pytest.CaptureFixture[str], pte: Path) -> None:
    """A sound header before a flatbuffer full of 0xFF."""
    data = bytearray(pte.read_bytes())
    data[64:4096] = b"\xff" * 4032
    pte.write_bytes(bytes(data))
    _refused(capsys, verify(pte), "cannot be parsed")


def test_unreadable_manifest_is_refused(capsys: pytest.CaptureFixture[str], pte: Path) -> None:
    """A manifest that is not JSON is not ignored."""
    manifest_path(pte).write_text("{")
    _refused(capsys, verify(pte), "manifest cannot be used")


def test_manifest_of_another_length_is_refused(capsys: pytest.CaptureFixture[str], pte: Path) -> None:
    """The program holds 768 tokens, the manifest says 512."""
    text = json.loads(manifest_path(pte).read_text())
    text["recipe"]["max_seq_len"] = text["recipe"]["max_context_len"] = 512
    manifest_path(pte).write_text(json.dumps(text))
    _refused(capsys, verify(pte), "manifest belongs to another file", "768", "512")


def test_checkpoint_of_another_program_is_refused(
    capsys: pytest.CaptureFixture[str], pte: Path, micro_checkpoint: Path
) -> None:
    """The manifest names the checkpoint that the program was made from."""
    _refused(
        capsys,
        verify(pte, "--model", str(micro_checkpoint)),
        "not the one that the artifact was made from",
        "llava_tiny",
    )


def test_corrupt_checkpoint_is_refused(capsys: pytest.CaptureFixture[str], pte: Path, tmp_path: Path) -> None:
    """Corrupt safetensors."""
    folder = Path(shutil.copytree(EMBEDDED, tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(b"\xff" * 5000)
    _refused(capsys, verify(pte, "--model", str(folder)), "not a readable safetensors file")


@pytest.mark.parametrize(("size", "said"), [((8000, 20), "too narrow"), (None, "cannot be read")])
def test_impossible_images_are_refused(
    capsys: pytest.CaptureFixture[str], pte: Path, tmp_path: Path, size: tuple[int, int] | None, said: str
) -> None:
    """An image of 8,000 x 20, and a text that calls itself one."""
    image = tmp_path / "image.png"
    if size:
        Image.new("RGB", size).save(image)
    else:
        image.write_text("not an image")
    assert main([str(pte), str(image)]) == 2
    assert said in capsys.readouterr().err


def test_unwritable_report_folder_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], pte: Path, tmp_path: Path
) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "report").write_text("")
    _refused(capsys, verify(pte, "--report", str(tmp_path / "report")), "cannot be written")


@pytest.mark.parametrize(
    ("flag", "said"), [(["--checks", "nothing.*"], "no check matches"), (["--target", "moon"], "unknown target")]
)
def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str], pte: Path, flag: list[str], said: str) -> None:
    """With the names that exist."""
    _refused(capsys, verify(pte, *flag), said, "expected")


@pytest.mark.parametrize("arguments", [["--unknown"], []])
def test_bad_usage_exits_with_2(arguments: list[str]) -> None:
    """An unknown flag, and no file at all."""
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--group-size", "48"], "multiple of 32"),
        (["--max-seq-len", "800", "--max-context-len", "700"], "lengths are not usable"),
        (["--model", "/nonexistent"], "no such checkpoint"),
        (["--calibration", "/nonexistent"], "too few calibration images"),
        (["--image", "/nonexistent.png"], "no such image"),
        (["--group-size", "512"], "whole groups"),
    ],
)
def test_exporter_refuses_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Exit status 2, a message, and an empty folder."""
    assert export_main(["--pte-name", str(tmp_path / "x.pte"), "--quiet", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_exporter_refuses_an_unwritable_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before minutes of work, not after them."""
    (tmp_path / "file").write_text("")
    assert export_main(["--pte-name", str(tmp_path / "file" / "x.pte"), "--quiet"]) == 2
    assert "cannot be written" in capsys.readouterr().err


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14000000\n"


def test_a_pointer_in_the_place_of_the_program_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A clone without its large files."""
    (tmp_path / "llava.pte").write_bytes(LFS)
    _refused(capsys, verify(tmp_path / "llava.pte"), "llava.pte is a Git LFS pointer", "git lfs pull")


def test_a_pointer_in_the_place_of_a_picture_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The user's own."""
    (tmp_path / "photo.jpg").write_bytes(LFS)
    _refused(capsys, verify(EMBEDDED_PTE, str(tmp_path / "photo.jpg")), "photo.jpg is a Git LFS pointer")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded checkpoint, to be damaged."""
    skipped = shutil.ignore_patterns("*.pte", "*.manifest.json", "make", "calibration", "images", "__pycache__")
    return Path(shutil.copytree(EMBEDDED, tmp_path / "model", ignore=skipped))


def _damage(model: Path, kind: str) -> None:
    if kind == "quantization_config":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {kind: {"quant_method": "gptq", "bits": 4}}))
        return
    weights = load_file(model / "model.safetensors")
    weights["model.language_model.layers.1.mlp.up_proj.weight"][4, 9] = float(kind)
    save_file(weights, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "said"),
    [("nan", "up_proj.weight"), ("inf", "inf at [4, 9]"), ("quantization_config", "asks for quantized weights")],
)
def test_unusable_checkpoints_are_refused_by_gate_and_exporter(
    capsys: pytest.CaptureFixture[str], model: Path, pte: Path, kind: str, said: str
) -> None:
    """Before anything runs, and before anything is written."""
    _damage(model, kind)
    _refused(capsys, verify(pte, "--model", str(model)), said)
    assert export_main(["--pte-name", str(model / "x.pte"), "--model", str(model), "--quiet"]) == 2
    assert said in capsys.readouterr().err
    assert not (model / "x.pte").exists()


def test_an_unknown_calling_convention_is_refused_with_the_signature(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions in a batch, as Hugging Face's `position_ids`, logits of all tokens. Nothing is judged, and the known ones are shown."""
    right = opening.open_artifact

    def foreign(path: Path) -> Artifact:
        artifact = right(path)
        facts = replace(
            artifact.methods["text_decoder"],
            inputs=(TensorFacts("FLOAT", (1, 767, 256), True), TensorFacts("LONG", (1, 767), True)),
            outputs=(TensorFacts("FLOAT", (1, 767, 1088), True),),
        )
        return replace(artifact, methods=artifact.methods | {"text_decoder": facts})

    monkeypatch.setattr(opening, "open_artifact", foreign)
    said = "(FLOAT[1, 767, 256] dynamic, LONG[1, 767] dynamic) -> (FLOAT[1, 767, 1088] dynamic)"
    names = [convention.name for convention in CONVENTIONS]
    _refused(capsys, verify(EMBEDDED_PTE), "calling convention of text_decoder is not known", said, *names)
