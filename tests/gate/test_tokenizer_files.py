"""`tokenizer.*`: a tokenizer file with the checkpoint's ids passes in every format; one with other ids, or that no app can load, fails by name."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2

from tests.gate.cases import copy_of_llava_tiny
from tests.support import EMBEDDED_PTE, verify
from verifier.checks.registry import select
from verifier.checks.tokenizer import CHECKS
from verifier.core.errors import UsageError
from verifier.core.types import CheckResult
from verifier.families.checkpoint import EMBEDDED
from verifier.families.llava.prompt import PROMPT
from verifier.families.registry import open_checkpoint
from verifier.families.tokens.agreement import open_tokenizer
from verifier.faults.tokenizer_forms import prepend, read_bin, rewrite, write_bin
from verifier.gather.opening import Request, open_request
from verifier.golden.records import load_golden
from verifier.measures.evidence import unasked
from verifier.measures.shipped import compare_shipped, measure_shipped
from verifier.measures.tokenizer import ask_tokenizers, find_tokenizers

FAMILY = [check.id for check in CHECKS]
Results = dict[str, CheckResult]


def judge(pte: Path, named: Path | None = None, model: Path = EMBEDDED) -> Results:
    """The results of all checks on the files beside a program, or on one; by check, and by case if there are several."""
    checkpoint, to_ship = open_checkpoint(str(model)), find_tokenizers(pte, named)
    golden = load_golden(checkpoint.directory, checkpoint.sha256)
    evidence: Any = SimpleNamespace(
        subjects=SimpleNamespace(tokenizers=to_ship.cases),
        shipped=measure_shipped(to_ship, checkpoint.directory, open_tokenizer(checkpoint), golden.images, PROMPT),
    )
    found = [result for check in CHECKS for result in check.results(evidence)]
    several = len(to_ship.cases) > 1
    return {f"{r.id} {r.case}" if several else r.id: r for r in found}


def shipped_bin(folder: Path) -> Path:
    """What the exporter's --with-artifacts writes."""
    return write_bin(EMBEDDED / "tokenizer.model", folder / "tokenizer.bin")


def shipped_model(folder: Path) -> Path:
    """The checkpoint's."""
    return Path(shutil.copy(EMBEDDED / "tokenizer.model", folder / "tokenizer.model"))


def shipped_json(folder: Path) -> Path:
    """The checkpoint's, in a form that ExecuTorch loads."""
    path = Path(shutil.copy(EMBEDDED / "tokenizer.json", folder / "tokenizer.json"))
    rewrite(path, prepend)
    return path


def swap_in_bin(path: Path, one: int, two: int) -> None:
    """Two pieces with their scores."""
    head, pieces = read_bin(path)
    pieces[one], pieces[two] = pieces[two], pieces[one]
    path.write_bytes(head + b"".join(pieces))


def change_model(path: Path, change: Callable[[Any], object]) -> None:
    """Change a SentencePiece model."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())


def swap_in_model(path: Path, one: int, two: int) -> None:
    """Two pieces with their scores."""

    def change(model: Any) -> None:
        first, second = model.pieces[one], model.pieces[two]
        first.piece, second.piece = second.piece, first.piece
        first.score, second.score = second.score, first.score

    change_model(path, change)


def swap_in_json(path: Path, one: int, two: int) -> None:
    """Two ids."""

    def change(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        names = {number: piece for piece, number in vocabulary.items()}
        vocabulary[names[one]], vocabulary[names[two]] = two, one

    rewrite(path, change)


SHIPPED = {"bin": shipped_bin, "model": shipped_model, "json": shipped_json}
SWAPS = {"bin": swap_in_bin, "model": swap_in_model, "json": swap_in_json}


@pytest.fixture
def pte(tmp_path: Path) -> Path:
    """A program as it ships, in a folder without a checkpoint."""
    folder = tmp_path / "app"
    folder.mkdir()
    return Path(shutil.copy(EMBEDDED_PTE, folder / "llava.pte"))


@pytest.mark.parametrize("kind", SHIPPED)
def test_file_with_the_checkpoints_ids_passes(kind: str, pte: Path) -> None:
    """Every text and every piece is compared; what the format does by design is counted with an example."""
    SHIPPED[kind](pte.parent)
    results = judge(pte)
    printed = {"tokenizer.answers"} if kind == "json" else set()  # the next test
    assert {id for id, r in results.items() if r.verdict != "pass"} == printed, results
    assert results["tokenizer.texts"].measured["compared"] == 500
    assert results["tokenizer.pieces"].measured["compared"] > 1700
    assert "after <image> (ExecuTorch's runner begins a new text there)" in results["tokenizer.prompts"].message


def test_json_whose_answers_lose_their_blanks_fails(pte: Path) -> None:
    """ExecuTorch's HFTokenizer strips the blank of every token: the ids are right, and what a user reads is not."""
    shipped_json(pte.parent)
    answers = judge(pte)["tokenizer.answers"]
    assert answers.verdict == "fail"
    assert "prints 'Asmallorangecircleonawhitebackground.'" in answers.message


def test_executorchs_runner_prints_as_the_check_says(pte: Path) -> None:
    """The claim about answers is the C++ library's own doing: the same decoder, asked directly."""
    from pytorch_tokenizers import CppHFTokenizer, CppSPTokenizer

    json_, model = CppHFTokenizer(), CppSPTokenizer()
    json_.load(str(shipped_json(pte.parent)))
    model.load(str(shipped_model(pte.parent)))
    ids = model.encode("A small ring", 0, 0)
    assert [json_.encode("A small ring", 0, 0), "".join(map(json_.decode, ids))] == [ids, "Asmallring"]
    assert "".join(map(model.decode, ids)) == " A small ring"


@pytest.mark.parametrize("kind", SWAPS)
@pytest.mark.parametrize(("one", "two"), [(262, 263), (700, 701), (955, 1020)])
def test_two_swapped_pieces_fail_with_text_and_id(kind: str, one: int, two: int, pte: Path) -> None:
    """Row 77, frequent pieces and rare ones: a text with one of them has another id."""
    SWAPS[kind](SHIPPED[kind](pte.parent), one, two)
    results = judge(pte)
    pieces = results["tokenizer.pieces"]
    assert (pieces.verdict, pieces.measured["different"] > 0) == ("fail", True)
    assert str(one) in pieces.message
    assert str(two) in pieces.message
    assert "the checkpoint's tokenizer has" in pieces.message


def test_swapped_letters_of_a_prompt_fail_everywhere(pte: Path) -> None:
    """Pieces that every prompt has: texts, pieces, prompts and answers."""
    swap_in_bin(shipped_bin(pte.parent), 262, 939)
    results = judge(pte)
    failed = {id for id, result in results.items() if result.verdict == "fail"}
    assert failed == {"tokenizer.texts", "tokenizer.pieces", "tokenizer.prompts", "tokenizer.answers"}
    assert "token 9 of 'A chat between" in results["tokenizer.prompts"].message


def _scores_swapped(path: Path) -> None:
    head, pieces = read_bin(path)
    pieces[260], pieces[700] = pieces[700][:4] + pieces[260][4:], pieces[260][:4] + pieces[700][4:]
    path.write_bytes(head + b"".join(pieces))


def _score_nan(path: Path) -> None:
    head, pieces = read_bin(path)
    pieces[936] = struct.pack("<f", float("nan")) + pieces[936][4:]
    path.write_bytes(head + b"".join(pieces))


def _without_the_last_piece(path: Path) -> None:
    head, pieces = read_bin(path)
    path.write_bytes(head + b"".join(pieces[:-1]))


def _one_piece_less(path: Path) -> None:
    head, pieces = read_bin(path)
    path.write_bytes(struct.pack("<I", 1023) + head[4:] + b"".join(pieces[:-1]))


def _other_bos(path: Path) -> None:
    head, pieces = read_bin(path)
    path.write_bytes(head[:4] + struct.pack("<I", 2) + head[8:] + b"".join(pieces))


def _another_model(path: Path) -> None:
    head, pieces = read_bin(path)
    path.write_bytes(head + b"".join([*pieces[:259], *reversed(pieces[259:])]))


@pytest.mark.parametrize(
    ("damage", "check", "words"),
    [
        (_scores_swapped, "tokenizer.pieces", "the checkpoint the other way round"),
        (_score_nan, "tokenizer.loads", "piece 936 has 1 bytes and the score nan"),
        (_without_the_last_piece, "tokenizer.loads", "ends after 1023 of 1024 pieces"),
        (_one_piece_less, "tokenizer.pieces", "1023"),
        (_other_bos, "tokenizer.loads", "it has BOS 2 and EOS 2, the checkpoint 1 and 2"),
        (_another_model, "tokenizer.texts", "the checkpoint's tokenizer has"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "tokenizer.loads", "of 1024 pieces"),
        (lambda path: path.write_bytes(b""), "tokenizer.loads", "the file is an empty file"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "tokenizer.loads", "Git LFS"),
        (lambda path: shutil.copy(EMBEDDED / "images" / "tall_0.png", path), "tokenizer.loads", "a PNG picture"),
    ],
)
def test_damaged_bin_fails(damage: Callable[[Path], object], check: str, words: str, pte: Path) -> None:
    """Each in the check that says what it is; what ExecuTorch loads all the same, padded or with NaN, too."""
    damage(shipped_bin(pte.parent))
    result = judge(pte)[check]
    assert (result.verdict, words in result.message) == ("fail", True), result.message


def test_score_that_is_no_number_fails_in_a_model(pte: Path) -> None:
    """SentencePiece loads it without a word."""
    change_model(shipped_model(pte.parent), lambda model: setattr(model.pieces[500], "score", float("nan")))
    assert "the score nan" in judge(pte)["tokenizer.loads"].message


def test_post_processor_without_bos_fails_in_the_prompts(pte: Path) -> None:
    """HFTokenizer takes BOS from there alone: an app's prompt would begin without it."""
    rewrite(shipped_json(pte.parent), lambda data: data.update(post_processor=None))
    prompts = judge(pte)["tokenizer.prompts"]
    assert prompts.verdict == "fail"
    assert "token 0 of 'A chat" in prompts.message


def test_file_that_cannot_be_loaded_fails_if_it_ships(pte: Path) -> None:
    """Metaspace, which ExecuTorch's C++ library does not know: said before a user ships it, once."""
    named = EMBEDDED / "tokenizer.json"
    results = judge(pte, named)
    assert results["tokenizer.loads"].verdict == "fail"
    assert "Unsupported PreTokenizer type: Metaspace" in results["tokenizer.loads"].message
    assert {results[id].verdict for id in FAMILY[1:]} == {"error"}
    shutil.copy(named, pte.parent / "tokenizer.json")
    assert judge(pte)["tokenizer.loads"].verdict == "fail"


def test_checkpoints_own_folder_needs_one_file_that_does() -> None:
    """llava_tiny.pte lies beside its checkpoint: tokenizer.model does, and what tokenizer.json lacks is said in the pass."""
    results = judge(EMBEDDED_PTE)
    assert {id: result.verdict for id, result in results.items()} == dict.fromkeys(FAMILY, "pass")
    assert "tokenizer.json cannot be used in an app" in results["tokenizer.loads"].message
    assert "Metaspace" in results["tokenizer.loads"].message


def test_checkpoints_own_folder_with_a_wrong_file_fails(tmp_path: Path) -> None:
    """A file that loads and gives other ids is worse than one that does not load."""
    model = copy_of_llava_tiny(tmp_path / "model")
    pte = Path(shutil.copy(EMBEDDED_PTE, model / "llava.pte"))
    swap_in_bin(shipped_bin(model), 262, 263)
    assert judge(pte, model=model)["tokenizer.texts"].message.startswith("tokenizer.bin: token")


def test_checkpoints_own_folder_without_a_usable_file_fails(tmp_path: Path) -> None:
    """Nothing there can ship."""
    model = copy_of_llava_tiny(tmp_path / "model")
    pte = Path(shutil.copy(EMBEDDED_PTE, model / "llava.pte"))
    (model / "tokenizer.model").unlink()
    assert judge(pte, model=EMBEDDED)["tokenizer.loads"].verdict == "fail"


def test_all_files_beside_a_program_are_checked(pte: Path) -> None:
    """One case for each; a config of the tokenizer is none."""
    shipped_bin(pte.parent)
    shipped_model(pte.parent)
    shutil.copy(EMBEDDED / "tokenizer_config.json", pte.parent)
    shutil.copy(shipped_bin(pte.parent), pte.parent / "llava-tokenizer.bin")
    assert find_tokenizers(pte, None).cases == ("llava-tokenizer.bin", "tokenizer.bin", "tokenizer.model")
    assert {result.verdict for result in judge(pte).values()} == {"pass"}


def test_without_a_file_nothing_is_claimed(pte: Path) -> None:
    """One result, skipped, that says how to name the file; a named one that is not there is refused."""
    results = judge(pte)
    assert [(id, result.verdict) for id, result in results.items()] == [("tokenizer.loads", "skipped")]
    assert "--tokenizer FILE" in results["tokenizer.loads"].message
    with pytest.raises(UsageError, match="no such tokenizer file"):
        open_request(Request(pte, tokenizer=pte.parent / "none.bin"))


@pytest.mark.parametrize(
    ("lost", "checks"),
    [
        ({"reader": "", "reasons": {}}, FAMILY),
        ({"ids": ()}, ["tokenizer.texts", "tokenizer.pieces", "tokenizer.prompts"]),
        ({"ids": ((),) * 4096}, ["tokenizer.texts", "tokenizer.pieces", "tokenizer.prompts"]),
        ({"with_bos": ()}, ["tokenizer.prompts"]),
        ({"printed": ()}, ["tokenizer.pieces", "tokenizer.answers"]),
    ],
)
def test_answers_that_are_lost_are_found_by_the_comparison(lost: dict[str, Any], checks: list[str], pte: Path) -> None:
    """A file that gives less than was asked, or empty ids, is never measured as equal."""
    shipped_bin(pte.parent)
    checkpoint = open_checkpoint(str(EMBEDDED))
    golden = load_golden(EMBEDDED, checkpoint.sha256).images
    to_ship = find_tokenizers(pte, None)
    asked = ask_tokenizers(to_ship, EMBEDDED, before=["A chat"], behind=["\nWhy?"], front=[1])
    broken = replace(asked, files=tuple(replace(file, **lost) for file in asked.files))
    evidence: Any = SimpleNamespace(
        subjects=SimpleNamespace(tokenizers=to_ship.cases),
        shipped=compare_shipped(broken, open_tokenizer(checkpoint), golden),
    )
    results = {check.id: check.results(evidence)[0] for check in CHECKS}
    assert {id for id, result in results.items() if result.verdict != "pass"} >= set(checks)


def test_evidence_that_is_missing_is_an_error(pte: Path) -> None:
    """Nothing gathered, nothing passed."""
    evidence: Any = SimpleNamespace(
        shipped=unasked("the tokenizer files"), subjects=SimpleNamespace(tokenizers=("tokenizer.bin",))
    )
    assert {r.verdict for check in CHECKS for r in check.results(evidence)} == {"error"}


def test_command_names_the_file_that_ships(pte: Path, tmp_path: Path) -> None:
    """--tokenizer: exit 0 for the exporter's tokenizer.bin, 1 for one with two swapped pieces; the report has the request."""
    path, report = shipped_bin(tmp_path), tmp_path / "report.json"
    words = ("--checks", "tokenizer.*", "--tokenizer", str(path), "--json", str(report))
    assert verify(pte, *words) == 0
    swap_in_bin(path, 262, 263)
    assert verify(pte, *words) == 1
    said = json.loads(report.read_text())
    assert said["request"]["tokenizer"] == str(path)
    assert said["blame"]["check"] == "tokenizer.texts"
    assert [check.id for check in select(("tokenizer.*",))] == FAMILY
