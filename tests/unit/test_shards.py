"""Weight files: which are read, what they may hold, and that every number in them is one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from verifier.core.errors import CheckpointError
from verifier.core.files import sha256_of_file
from verifier.families.registry import open_checkpoint
from verifier.families.shards import read_contents, read_shard

NORM = "model.language_model.norm.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s12345--4d7a214614ab2935c943f9e0ff69d22e.safetensors\n"


@pytest.fixture
def model(micro_checkpoint: Path, tmp_path: Path) -> Path:
    """A micro checkpoint that may be damaged."""
    return Path(shutil.copytree(micro_checkpoint, tmp_path / "model"))


def _split(
    model: Path, *, second: dict[str, torch.Tensor], index: dict[str, str] | None = None
) -> dict[str, torch.Tensor]:
    """Everything in a.safetensors, `second` in b.safetensors; the index names a for all but what only b holds, or what `index` says."""
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    save_file(weights, model / "a.safetensors", {"format": "pt"})
    save_file(second, model / "b.safetensors", {"format": "pt"})
    names = dict.fromkeys(second, "b.safetensors") | dict.fromkeys(weights, "a.safetensors") | (index or {})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return weights


@pytest.mark.parametrize("named", ["a.safetensors", "b.safetensors"])
def test_a_stale_copy_in_another_shard_is_refused(model: Path, named: str) -> None:
    """Whichever the index names: transformers takes the last file's, others the index's."""
    _split(model, second={NORM: torch.full((64,), 3.0), "x": torch.zeros(1)}, index={NORM: named})
    with pytest.raises(
        CheckpointError, match=rf"(?s){NORM} is in two files.*a.safetensors and b.safetensors.*names {named}"
    ):
        open_checkpoint(model)


def test_a_copy_in_another_dtype_is_refused(model: Path) -> None:
    """The same values, quantized: other weights in another process (vllm#54230)."""
    _split(model, second={NORM: torch.ones(64, dtype=torch.int8)}, index={NORM: "b.safetensors"})
    with pytest.raises(CheckpointError, match=f"{NORM} is in two files"):
        open_checkpoint(model)


def test_equal_copies_are_one_tensor(model: Path) -> None:
    """As files that share an embedding have them: every loader reads the same."""
    weights = load_file(model / "model.safetensors")
    _split(model, second={NORM: weights[NORM]}, index={NORM: "b.safetensors"})
    assert torch.equal(open_checkpoint(model).tensor(NORM), weights[NORM])


def test_an_index_that_names_a_tensor_which_its_shard_lacks_is_refused(model: Path) -> None:
    """A download of two revisions."""
    weights = load_file(model / "model.safetensors")
    _split(model, second={"x": torch.zeros(1)}, index={NORM: "b.safetensors"})
    assert NORM in weights
    with pytest.raises(CheckpointError, match=rf"(?s)its file does not hold.*{NORM} is in a.safetensors"):
        open_checkpoint(model)


def test_a_tensor_of_the_index_that_no_shard_holds_is_refused(model: Path) -> None:
    """A shard that was saved anew without it."""
    _split(model, second={"x": torch.zeros(1)}, index={"y": "b.safetensors"})
    with pytest.raises(CheckpointError, match="y is in no file"):
        open_checkpoint(model)


def test_a_truncated_shard_is_refused(model: Path) -> None:
    """The second of two."""
    weights = load_file(model / "model.safetensors")
    _split(model, second={NORM: weights[NORM]}, index={NORM: "b.safetensors"})
    path = model / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"b\.safetensors is not a readable safetensors file"):
        open_checkpoint(model)


@pytest.mark.parametrize(("change", "refused"), [(0.0, False), (1.0, True)])
def test_two_sets_of_weights_are_refused_unless_equal(model: Path, change: float, refused: bool) -> None:
    """transformers loads model.safetensors, others the files of the index."""
    weights = _split(model, second={"model.language_model.extra": torch.zeros(1)})
    (model / "b.safetensors").unlink()
    names = dict.fromkeys(weights, "a.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    weights[NORM] = weights[NORM] + change
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    if refused:
        with pytest.raises(CheckpointError, match=f"(?s)two sets of weights.*{NORM}"):
            open_checkpoint(model)
    else:
        assert [path.name for path in open_checkpoint(model).shards] == ["model.safetensors"]


def test_an_index_whose_files_are_gone_is_left_alone(model: Path) -> None:
    """The leftover of a merge: only one set can be loaded."""
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert open_checkpoint(model).shards == (model / "model.safetensors",)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(dtype: torch.dtype, value: float, tmp_path: Path) -> None:
    """Tensor, index and value, in every floating-point format, behind a block's border; the hash is the file's."""
    if dtype == torch.float8_e4m3fn and abs(value) == float("inf"):
        pytest.skip("this format has no infinity")
    path = tmp_path / "w.safetensors"
    # named in a later tensor, past the first block of 1 MiB, with an odd count of elements before it
    wide = torch.ones(1100, 1001, dtype=torch.float32).to(dtype)
    flat = wide.view(-1)
    flat[1050 * 1001 + 7] = value
    save_file({"a": torch.zeros(3, dtype=torch.uint8), "wide": wide}, path)
    contents = read_contents(read_shard(path))
    assert contents.sha256 == sha256_of_file(path)
    assert contents.not_finite is not None
    assert (contents.not_finite.tensor.name, contents.not_finite.index) == ("wide", (1050, 7))
    assert contents.not_finite.value == str(value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]
)
def test_the_largest_finite_numbers_pass(dtype: torch.dtype, tmp_path: Path) -> None:
    """Nothing finite is refused, subnormal and negative numbers and zero among them; integers are not looked at."""
    limits = torch.finfo(dtype)
    values = torch.tensor([limits.max, -limits.max, limits.tiny, -0.0, 1.0]).to(dtype)
    save_file(
        {"w": values, "i": torch.full((9,), -1, dtype=torch.int64), "none": torch.zeros(0)}, tmp_path / "w.safetensors"
    )
    assert read_contents(read_shard(tmp_path / "w.safetensors")).not_finite is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_such_a_weight_is_refused(model: Path, value: float) -> None:
    """Where it is read to be verified or exported, not where it is only identified."""
    weights = load_file(model / "model.safetensors")
    weights["model.language_model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(model)
    assert len(checkpoint.sha256) == 64
    with pytest.raises(CheckpointError, match=rf"(?s)layers\.1\.mlp\.up_proj\.weight.*{value} at \[3, 5\]"):
        checkpoint.require_usable()


@pytest.mark.parametrize("place", [(), ("text_config",), ("vision_config",)])
@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {},
    ],
)
def test_leftover_quantization_settings_are_refused(
    model: Path, place: tuple[str, ...], settings: dict[str, object]
) -> None:
    """Wherever they stand: transformers would quantize the weights when it loads them."""
    path = model / "config.json"
    config = json.loads(path.read_text())
    section = config
    for name in place:
        section = section[name]
    section["quantization_config"] = settings
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"(?s)quantized weights.*{'.'.join((*place, 'quantization_config'))}"):
        open_checkpoint(model).require_usable()


def test_no_quantization_settings_are_no_leftover(model: Path) -> None:
    """null is what a cleaned config says."""
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": None}))
    open_checkpoint(model).require_usable()


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "tokenizer.model",
        "tokenizer.json",
        "generation_config.json",
        "processor_config.json",
    ],
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LFS, "a Git LFS pointer.*git lfs pull"),
        (ANNEX, "a git-annex pointer.*git annex get"),
        (b"<!DOCTYPE html><html>Sign in</html>", "an HTML page"),
    ],
)
def test_pointers_and_pages_are_refused_as_what_they_are(model: Path, name: str, text: bytes, said: str) -> None:
    """A clone without its large files, and a download that needed a login."""
    (model / name).write_bytes(text)
    with pytest.raises(CheckpointError, match=f"(?s){name} is {said}"):
        open_checkpoint(model)


def test_pickled_weights_are_named(model: Path) -> None:
    """They can run code, and are not read."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"(?s)pytorch_model.bin.*pickled.*save_pretrained"):
        open_checkpoint(model)
