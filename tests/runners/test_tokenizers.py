"""The runners' own tokenizers: the ids of Hugging Face and SentencePiece, the same in Python and C++, and clear words for every other file."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from tests.gate.cases import copy_of_llava_tiny
from tests.support import EMBEDDED_PTE
from verifier.core.errors import RunnerError
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import DEFAULT_QUESTION, PROMPT
from verifier.families.prompts import caption_prompt
from verifier.families.tokens.texts import texts
from verifier.families.tokens.tokenizer import Tokenizer as OwnTokenizer
from verifier.faults.tokenizer_forms import prepend, rewrite, write_bin
from verifier.runner.native import NativeRunner
from verifier.runner.tokenizer import Tokenizer, open_tokenizer

pytestmark = pytest.mark.xdist_group("runner")
Change = Callable[[dict[str, Any]], object]
FENCE = "\ue000image\ue000"
METASPACE = {"type": "Metaspace", "replacement": "\u2581"}


def _without_bytes(data: dict[str, Any]) -> None:
    data["model"] |= {"byte_fallback": False, "unk_token": "<unk>", "fuse_unk": True}


def _added(data: dict[str, Any]) -> None:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    data["added_tokens"] += [{"id": 1026 + i, "content": c} | flags for i, c in enumerate(("the", "there", "\n"))]


JSON_FORMS: dict[str, Change] = {
    "as llava_tiny has it": lambda data: None,
    "Prepend and Replace": prepend,
    "Metaspace, always": lambda data: data.update(
        pre_tokenizer=METASPACE | {"prepend_scheme": "always", "split": False}
    ),
    "Metaspace, never": lambda data: data.update(pre_tokenizer=METASPACE | {"prepend_scheme": "never", "split": False}),
    "Metaspace, split": lambda data: data["pre_tokenizer"].update(split=True),
    "Metaspace of old": lambda data: data.update(pre_tokenizer=METASPACE | {"add_prefix_space": True}),
    "ignore_merges": lambda data: data["model"].update(ignore_merges=True),
    "without byte_fallback": _without_bytes,
    "merges as text": lambda data: data["model"].update(merges=[" ".join(m) for m in data["model"]["merges"]]),
    "added tokens that are not special": _added,
}


def _model_without_bytes(model: Any) -> None:
    model.trainer_spec.byte_fallback = False
    for number, piece in enumerate(model.pieces):
        if piece.type == 6:
            piece.piece, piece.type = f"\u27e8{number}\u27e9", 1


def _user_defined(model: Any) -> None:
    for number, piece in ((400, "image"), (401, "imag"), (402, "\u2581photo")):
        model.pieces[number].piece, model.pieces[number].type = piece, 4


MODEL_FORMS: dict[str, Callable[[Any], object]] = {
    "as llava_tiny has it": lambda model: None,
    "no blank in front": lambda model: setattr(model.normalizer_spec, "add_dummy_prefix", False),
    "without byte_fallback": _model_without_bytes,
    "user-defined pieces": _user_defined,
}


def _json(folder: Path, change: Change, name: str = "tokenizer.json") -> Path:
    data = json.loads((EMBEDDED / "tokenizer.json").read_text())
    change(data)
    path = folder / name
    path.write_text(json.dumps(data, ensure_ascii=False))
    return path


def _model(folder: Path, change: Callable[[Any], object]) -> Path:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    change(model)
    path = folder / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def _bin(folder: Path) -> Path:
    return write_bin(EMBEDDED / "tokenizer.model", folder / "tokenizer.bin")


def _native_ids(native: NativeRunner, tokenizer: Path, folder: Path) -> list[dict[str, list[int]]]:
    """What `llava_main --tokenize` makes of all texts."""
    asked = folder / "texts.json"
    asked.write_text(json.dumps(texts()))
    words = [str(native.binary), f"--tokenize={asked}", f"--tokenizer_path={tokenizer}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _our_ids(tokenizer: Tokenizer) -> list[dict[str, list[int]]]:
    return [{"start": tokenizer.encode(text), "behind": tokenizer.encode_behind(text)} for text in texts()]


@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_is_read_as_by_hugging_face(form: str, tmp_path: Path, native: NativeRunner) -> None:
    """500 texts, at the start and behind a special token: the ids of `tokenizers`, in Python and C++."""
    path = _json(tmp_path, JSON_FORMS[form])
    ours = _our_ids(open_tokenizer(path))
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True  # what a user writes is text
    reference.add_tokens([tokenizers.AddedToken(FENCE, special=False, normalized=False)])
    for text, ids in zip(texts(), ours, strict=True):
        assert ids["start"] == reference.encode(text, add_special_tokens=False).ids, text
        assert ids["behind"] == reference.encode(FENCE + text, add_special_tokens=False).ids[1:], text
    assert _native_ids(native, path, tmp_path) == ours


@pytest.mark.parametrize("form", MODEL_FORMS)
def test_model_is_read_as_by_sentencepiece(form: str, tmp_path: Path, native: NativeRunner) -> None:
    """500 texts: SentencePiece's ids, in Python and C++; behind an image the same, as in ExecuTorch's runner."""
    path = _model(tmp_path, MODEL_FORMS[form])
    ours = _our_ids(open_tokenizer(path))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text, ids in zip(texts(), ours, strict=True):
        assert ids["start"] == ids["behind"] == reference.encode(text), text
    assert _native_ids(native, path, tmp_path) == ours


def test_bin_is_read_as_by_executorch(tmp_path: Path, native: NativeRunner) -> None:
    """500 texts: the ids of ExecuTorch's C++ tokenizer, which takes no empty one."""
    from pytorch_tokenizers import CppLlama2cTokenizer

    path = _bin(tmp_path)
    ours, reference = _our_ids(open_tokenizer(path)), CppLlama2cTokenizer()
    reference.load(str(path))
    for text, ids in zip(texts(), ours, strict=True):
        assert ids["start"] == ids["behind"] == (reference.encode(text, 0, 0) if text else []), text
    assert _native_ids(native, path, tmp_path) == ours


def test_image_is_followed_by_what_the_file_says() -> None:
    """Metaspace "first" puts nothing between `<image>` and the newline; SentencePiece's file cannot say, and begins a new text."""
    metaspace, model = (open_tokenizer(EMBEDDED / name) for name in ("tokenizer.json", "tokenizer.model"))
    assert metaspace.encode_behind("\nWhy?") == metaspace.encode("\nWhy?")[1:]
    assert model.encode_behind("\nWhy?") == model.encode("\nWhy?") == metaspace.encode("\nWhy?")


def test_prepend_puts_a_blank_behind_the_image(tmp_path: Path) -> None:
    """The published 7B's form: a lone blank stands between `<image>` and the newline."""
    made = open_tokenizer(_json(tmp_path, prepend))
    assert made.encode_behind("\nWhy?") == made.encode("\nWhy?")
    assert made.piece(made.encode_behind("\n")[0]) == b" "


@pytest.mark.parametrize("form", ["as llava_tiny has it", "Prepend and Replace"])
def test_prompt_is_the_one_that_the_gate_feeds(form: str, tmp_path: Path) -> None:
    """Of either kind of checkpoint: the same ids before and behind the image."""
    model = copy_of_llava_tiny(tmp_path / "model")
    rewrite(model / "tokenizer.json", JSON_FORMS[form])
    (model / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "LlamaTokenizer"})
    )
    ours = open_tokenizer(model / "tokenizer.json")
    for question in (DEFAULT_QUESTION, "Was ist das? 日本 🙂", "What does <image> or </s> mean?", " two  blanks "):
        fed = caption_prompt(OwnTokenizer(model), PROMPT, question)
        assert fed.before == (ours.bos, *ours.encode(PROMPT.before_image))
        assert fed.after == tuple(ours.encode_behind(PROMPT.after_image(question)))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_name_of_the_file_does_not_matter(name: str, tmp_path: Path) -> None:
    """Its content does: BOS, EOS, and pieces that together are the text."""
    path = tmp_path / "llm.dat"
    path.write_bytes((EMBEDDED / name).read_bytes())
    tokenizer = open_tokenizer(path)
    assert (tokenizer.bos, tokenizer.eos) == (1, (2,))
    for text in ("A small ring.", "é 日本 🙂", "a  b\n"):
        assert b"".join(tokenizer.piece(i) for i in tokenizer.encode(text)).decode() == f" {text}"
    assert [tokenizer.piece(i) for i in (1, 2, 5000, -1)] == [b""] * 4


def _bin_bytes(*pieces: tuple[float, bytes], count: int | None = None) -> bytes:
    head = struct.pack("<IIII", len(pieces) if count is None else count, 1, 2, 8)
    return head + b"".join(struct.pack("<fI", score, len(piece)) + piece for score, piece in pieces)


def _unigram() -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    model.trainer_spec.model_type = 1
    return bytes(model.SerializeToString())


def _nfkc() -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    model.normalizer_spec.name, model.normalizer_spec.precompiled_charsmap = "nmt_nfkc", b"\1"
    return bytes(model.SerializeToString())


def _nan_score() -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((EMBEDDED / "tokenizer.model").read_bytes())
    model.pieces[300].score = float("nan")
    return bytes(model.SerializeToString())


def _edited(**model: object) -> bytes:
    data = json.loads((EMBEDDED / "tokenizer.json").read_text())
    data["model"] |= model
    return json.dumps(data).encode()


PIECES = tuple((-float(i), b"p%d" % i) for i in range(8))
WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "zeros": (lambda: b"\0" * 64, "zero bytes"),
    "noise": (lambda: b"\xfe\xed" * 4096, "an unknown binary file"),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n", "a Git LFS pointer"),
    "PNG": ((EMBEDDED / "images" / "odd_333x335.png").read_bytes, "a PNG picture"),
    "JPEG": ((EMBEDDED / "images" / "photo_china.jpg").read_bytes, "a JPEG picture"),
    "program": (EMBEDDED_PTE.read_bytes, "an ExecuTorch program"),
    "weights": (lambda: (EMBEDDED / "model.safetensors").read_bytes()[:4096], "a safetensors file"),
    "config": ((EMBEDDED / "config.json").read_bytes, "a config.json"),
    "tokenizer_config": ((EMBEDDED / "tokenizer_config.json").read_bytes, "a tokenizer_config.json"),
    "processor": ((EMBEDDED / "processor_config.json").read_bytes, "a processor_config.json"),
    "vocab.json": (lambda: b'{"a": 0, "b": 1}', "a vocab.json"),
    "HTML": (lambda: b"\n<!DOCTYPE html><html>", "an HTML page"),
    "text": (lambda: b"USER: hello\n", "a text file"),
    "tiktoken": (lambda: b"IQ== 0\nIg== 1\n", "a tiktoken vocabulary"),
    "pickle": (lambda: b"\x80\x04\x95", "a Python pickle"),
    "torch": (lambda: b"PK\x03\x04" + bytes(60), "a ZIP archive"),
    "unigram": (_unigram, "a SentencePiece unigram model"),
    "normalizer": (_nfkc, "the normalizer nmt_nfkc"),
    "score": (_nan_score, "piece 300 has 2 bytes, the score nan"),
    "bin score": (lambda: _bin_bytes(*PIECES[:3], (float("nan"), b"x")), "piece 3 has 1 bytes and the score nan"),
    "bin cut at a piece": (lambda: _bin_bytes(*PIECES, count=9), "ends after 8 of 9 pieces"),
    "bin cut in a piece": (lambda: _bin_bytes(*PIECES)[:-1], "ends within piece 7 of 8"),
    "model cut": (lambda: (EMBEDDED / "tokenizer.model").read_bytes()[:-20], "ends too early"),
    "JSON cut": (lambda: (EMBEDDED / "tokenizer.json").read_bytes()[:-20], "cannot be parsed, cut off or damaged"),
    "JSON deep": (lambda: b'{"model": ' + b"[" * 100_000, "cannot be parsed, cut off or damaged"),
    "Unigram": (lambda: _edited(type="Unigram", vocab=[["a", 0.0]]), "a tokenizer.json with a Unigram model"),
    "WordPiece": (lambda: _edited(type="WordPiece"), "a tokenizer.json with a WordPiece model"),
    "prefix": (lambda: _edited(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "merge": (lambda: _edited(merges=[["q", "qqq"]]), "merge 0 has pieces that are not in its vocabulary"),
    "id": (lambda: _edited(vocab={"a": -1}, merges=[]), "the id -1"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_file_is_called_what_it_is(kind: str, tmp_path: Path, native: NativeRunner) -> None:
    """In Python and C++ in the same words, exit status 2."""
    make, words = WRONG[kind]
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(make())
    with pytest.raises(RunnerError, match=r"not a tokenizer\.bin, tokenizer\.model or tokenizer\.json") as refused:
        open_tokenizer(path)
    assert words in str(refused.value.got)
    command = [str(native.binary), f"--tokenize={path}", f"--tokenizer_path={path}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
    assert (done.returncode, str(refused.value.got) in done.stderr) == (2, True), done.stderr


def test_pre_tokenizer_that_is_not_supported_is_named(tmp_path: Path, native: NativeRunner) -> None:
    """A tokenizer of another family, for example Llama 3's."""
    path = _json(tmp_path, lambda data: data.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}))
    with pytest.raises(RunnerError, match="pre-tokenizer ByteLevel, which is not supported"):
        open_tokenizer(path)
    command = [str(native.binary), f"--tokenize={path}", f"--tokenizer_path={path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "pre-tokenizer ByteLevel, which is not supported" in done.stderr) == (2, True)


def test_damaged_files_are_read_alike_or_refused(tmp_path: Path, native: NativeRunner) -> None:
    """120 files with some bytes changed, cut or doubled: no crash, and whatever Python makes of one C++ makes of it too."""
    drawn = random.Random(77)
    sources = [
        path.read_bytes() for path in (_bin(tmp_path), EMBEDDED / "tokenizer.model", EMBEDDED / "tokenizer.json")
    ]
    asked = tmp_path / "texts.json"
    asked.write_text(json.dumps(texts()[:40]))
    path = tmp_path / "damaged"
    loaded = 0
    for number in range(120):
        data = bytearray(sources[number % 3])
        at = drawn.randrange(drawn.choice((64, 4096, len(data))))
        if number % 4 == 0:
            del data[at:]
        elif number % 4 == 1:
            data[at:at] = data[at : at + 30]
        else:
            data[at] = drawn.choice((0, 10, 34, 123, 128, 255))
        path.write_bytes(data)
        try:
            tokenizer = open_tokenizer(path)
            ours = [{"start": tokenizer.encode(t), "behind": tokenizer.encode_behind(t)} for t in texts()[:40]]
            loaded += 1
        except RunnerError:
            ours = None
        command = [str(native.binary), f"--tokenize={asked}", f"--tokenizer_path={path}"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=60)
        assert done.returncode == (2 if ours is None else 0), done.stderr
        assert ours is None or [json.loads(line) for line in done.stdout.splitlines()] == ours
    assert loaded > 10
