"""The tokenizer files that ship, read by ExecuTorch's tokenizers, compared with the checkpoint's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

from verifier.families.tokens.spelling import BLANK, described, first_out_of_order, own_damage
from verifier.measures.tokenizer import Shipped, TokenizerEvidence, ToShip, ask_tokenizers
from verifier.runner.file_kinds import describe

if TYPE_CHECKING:
    from pathlib import Path

    from verifier.families.prompts import PromptFormat
    from verifier.families.tokens.tokenizer import Tokenizer
    from verifier.golden.records import GoldenImage

_READERS = ("Llama2cTokenizer", "SPTokenizer", "HFTokenizer")
_SHOWN = 60


@dataclass(frozen=True)
class FileFinding:
    """One comparison of one file: `wrong` in words, or nothing; how many were compared; what its format does by design. `unusable` is a file
    that no app can use, where another one of the same folder may do."""

    wrong: str = ""
    unusable: str = ""
    counted: bool = True
    compared: int = 0
    different: int = 0
    by_format: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    noted: str = ""


@dataclass(frozen=True)
class ShippedFile:
    """One file: whether a tokenizer of ExecuTorch `loaded` it, the `problem` that kept it from being asked, and its `findings` by comparison
    (a name in `COMPARISONS`)."""

    name: str
    loaded: bool
    problem: str
    findings: dict[str, FileFinding]


@dataclass(frozen=True)
class ShippedTokenizers:
    """All files. `together` are those of a checkpoint's own folder: an app takes one of them."""

    files: tuple[ShippedFile, ...]
    together: bool


def measure_shipped(
    to_ship: ToShip, folder: Path, tokenizer: Tokenizer, images: Sequence[GoldenImage], form: PromptFormat
) -> ShippedTokenizers:
    """Ask every file, and compare it with the tokenizer of the checkpoint in `folder`, on the prompts and answers of golden `images` too.
    Raises `CheckpointError`."""
    questions = [image.question for image in images] or [form.default_question]
    asked = ask_tokenizers(
        to_ship,
        folder,
        before=[form.before_image],
        behind=[form.after_image(question) if question else form.cue for question in questions],
        front=[tokenizer.bos_id] if tokenizer.adds_bos else [],
    )
    return compare_shipped(asked, tokenizer, images)


def compare_shipped(asked: TokenizerEvidence, tokenizer: Tokenizer, images: Sequence[GoldenImage]) -> ShippedTokenizers:
    """All comparisons of all files that were asked."""
    given = _Given(asked, tokenizer, tuple(images))
    return ShippedTokenizers(tuple(_compare_file(given, file) for file in asked.files), asked.together)


@dataclass(frozen=True)
class _Given:
    """What every comparison looks at besides the file."""

    asked: TokenizerEvidence
    tokenizer: Tokenizer
    images: tuple[GoldenImage, ...]


@dataclass
class _Tally:
    """A finding in the making."""

    noted: str = ""
    counted: bool = True
    compared: int = 0
    different: int = 0
    wrong: str = ""
    unusable: str = ""
    by_format: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def differs(self, said: str) -> None:
        """Count a difference; the first one is kept in words."""
        self.different += 1
        self.wrong = self.wrong or said

    def by_design(self, why: str, example: str, count: int = 1) -> None:
        """Count differences that the format explains."""
        self.by_format[why] += count
        self.examples.setdefault(why, example)

    def finding(self) -> FileFinding:
        """The record of what was counted."""
        fields = vars(self) | {"by_format": dict(self.by_format), "examples": dict(self.examples)}
        return FileFinding(**fields)


def _compare_file(given: _Given, file: Shipped) -> ShippedFile:
    if file.reader:
        findings = {name: compare(given, file).finding() for name, compare in COMPARISONS.items()}
    elif file.problem:
        findings = {}
    else:
        findings = dict.fromkeys(COMPARISONS, FileFinding(unusable=_refused(file)))
    return ShippedFile(file.path.name, bool(file.reader), file.problem, findings)


def _refused(file: Shipped) -> str:
    """Why no reader took a file, by what the file is."""
    if file.reasons is None:
        return f"ExecuTorch's tokenizers crash on it: {file.crash}"
    with file.path.open("rb") as opened:
        begun = opened.read(4096)
    wanted = {b"{": "HFTokenizer", b"\n": "SPTokenizer"}.get(begun.lstrip(b" \t\r")[:1], "Llama2cTokenizer")
    is_ = describe(begun)
    kind = "" if is_ == "an unknown binary file" or begun[:1] == b"{" else f", {is_}"
    return f"ExecuTorch cannot load it{kind}: {file.reasons.get(wanted, '')}"


def _loads(given: _Given, file: Shipped) -> _Tally:
    tokenizer = given.tokenizer
    said = f"ExecuTorch's {file.reader} loads it, {file.vocabulary} pieces"
    tally = _Tally(noted=said, counted=False, compared=1)
    if file.reader not in _READERS:
        is_ = describe(file.path.read_bytes()[:4096])
        tally.wrong = (
            f"ExecuTorch loads it as {file.reader}, which no LLaVA with a Llama decoder uses: the file is {is_}"
        )
    elif file.crash and not file.ids:
        tally.wrong = f"ExecuTorch's {file.reader} crashes: {file.crash}"
    elif damage := own_damage(file.path):
        tally.wrong = damage
    elif file.reader != "HFTokenizer" and (file.bos, file.eos) != (tokenizer.bos_id, tokenizer.eos_id):
        # HFTokenizer knows neither: its BOS comes with the post-processor (tokenizer.prompts), EOS from the program (structure.metadata)
        got, wanted = f"BOS {file.bos} and EOS {file.eos}", f"{tokenizer.bos_id} and {tokenizer.eos_id}"
        tally.wrong = f"it has {got}, the checkpoint {wanted}"
    tally.different = int(bool(tally.wrong))
    return tally


def _compare(  # noqa: PLR0917
    tally: _Tally,
    given: _Given,
    file: Shipped,
    text: str,
    actual: tuple[int, ...] | str | None,
    front: list[int],
) -> None:
    """Hold the ids of one text against the checkpoint's, or against those that the format explains."""
    expected = [*front, *given.tokenizer.encode(text)]
    tally.compared += 1
    if actual is None:
        tally.differs(_first_difference(given, text, f"the process ended here: {file.crash}", expected))
        return
    if not isinstance(actual, str) and list(actual) == expected:
        return
    part = given.asked.explained(file, text)
    same = part.ids is None if isinstance(actual, str) else part.ids is not None and list(actual) == [*front, *part.ids]
    if part.why and same and not file.crash:
        tally.by_design(part.why, repr(text[:_SHOWN]))
    else:
        tally.differs(_first_difference(given, text, actual, expected))


def _first_difference(given: _Given, text: str, actual: tuple[int, ...] | str, expected: list[int]) -> str:
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    if isinstance(actual, str):
        return f"{shown} cannot be encoded: {actual}"
    names = given.asked.pieces.names
    pairs = enumerate(zip_longest(actual, expected))
    at, (got, wanted) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
    one, two = ("the end" if number is None else described([number], names) for number in (got, wanted))
    return f"token {at} of {shown} is {one}, the checkpoint's tokenizer has {two}"


def _texts(given: _Given, file: Shipped) -> _Tally:
    tally = _Tally(noted="texts")
    for text, ids in _answers(given.asked.texts, file.ids):
        _compare(tally, given, file, text, ids, [])
    return tally


def _answers(
    texts: tuple[str, ...], ids: tuple[tuple[int, ...] | str, ...]
) -> Iterator[tuple[str, tuple[int, ...] | str | None]]:
    """Texts with what came back; of those behind a crash the first only."""
    for at, text in enumerate(texts):
        yield text, ids[at] if at < len(ids) else None
        if at >= len(ids):
            return


def _pieces(given: _Given, file: Shipped) -> _Tally:
    tally = _Tally(noted="pieces and merges")
    for text, ids in _answers(given.asked.pieces_texts, file.ids[len(given.asked.texts) :]):
        _compare(tally, given, file, text, ids, [])
        if ids is None:
            return tally
    tally.compared += len(given.asked.pieces.merges)
    out_of_order = first_out_of_order(file.path, given.asked.pieces.merges)
    if out_of_order is not None:
        one, two = out_of_order
        said = f"it makes the piece {two!r} before {one!r}, the checkpoint the other way round"
        tally.differs(said)
    for number, piece in sorted(given.asked.pieces.names.items()):
        if number >= len(file.printed):
            if file.crash:
                said = f"the id {number} cannot be printed: the process ended here, {file.crash}"
                tally.differs(said)
                break
            if number < given.asked.asked:
                said = f"it has {file.vocabulary} pieces, the checkpoint more: {described([number], given.asked.pieces.names)} is not in it"
                tally.differs(said)
                break
            continue
        _compare_print(tally, file, number, piece)
    return tally


def _compare_print(tally: _Tally, file: Shipped, number: int, piece: str) -> None:
    printed, wanted = file.printed[number], _printed_as(piece)
    tally.compared += 1
    if printed == wanted:
        return
    if wanted != piece.replace(BLANK, " "):  # a byte
        why = "byte pieces (ExecuTorch prints them as text or not at all)"
        if printed in (piece, "", "\0") or printed.startswith("error: "):
            tally.by_design(why, f"{piece} as {printed!r}")
            return
    elif file.reader == "HFTokenizer" and printed.strip(" ") == wanted.strip(" "):
        why = "pieces printed without their blank (see tokenizer.answers)"
        tally.by_design(why, f"{piece} as {printed!r}")
        return
    tally.differs(f"the id {number} is printed as {printed!r}, the checkpoint's piece is {piece!r}")


def _printed_as(piece: str) -> str:
    if is_byte_piece(piece):
        return bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape").replace("\0", "")
    return piece.replace(BLANK, " ")


def _prompts(given: _Given, file: Shipped) -> _Tally:
    behind = given.tokenizer.encode_behind
    tally = _Tally(noted="texts of the golden prompts, each encoded by itself, BOS before the first,")
    blanks = [text for text in given.asked.behind if behind(text) != given.tokenizer.encode(text)]
    for text, ids in _answers(given.asked.before, file.with_bos):
        _compare(tally, given, file, text, ids, given.asked.front)
    first = len(given.asked.texts) + len(given.asked.pieces_texts)
    for text, ids in _answers(given.asked.behind, file.ids[first:]):
        _compare(tally, given, file, text, ids, [])
    if blanks:
        one, two = given.tokenizer.encode(blanks[0]), behind(blanks[0])
        tail = f"{described(one[:1], given.asked.pieces.names)} more than the checkpoint's {len(two)} tokens"
        why = "after <image> (ExecuTorch's runner begins a new text there)"
        tally.by_design(why, f"{blanks[0][:_SHOWN]!r} gets {tail}", len(blanks))
    return tally


def _answers_of(given: _Given, file: Shipped) -> _Tally:
    tally = _Tally(noted="answers, printed token by token,")
    for image in given.images:
        known = given.asked.pieces.names.keys() | range(
            len(file.printed)
        )  # a model may answer with an id that no tokenizer has
        ids = [number for number in image.ids if number != given.tokenizer.eos_id and number in known]
        lacking = next((number for number in ids if not 0 <= number < len(file.printed)), None)
        printed = "" if lacking is not None else "".join(file.printed[number] for number in ids).strip()
        wanted = given.tokenizer.decode(ids)
        tally.compared += 1
        if printed == wanted:
            continue
        if lacking is None and (bytes_ := _bytes_without_text(given, ids)):
            why = "bytes that are no text (ExecuTorch prints each as it is, Hugging Face a replacement character for each)"
            tally.by_design(why, f"{bytes_.hex(' ')} in the answer to {image.name}")
            continue
        said = f"the file has no id {lacking}" if lacking is not None else f"a runner prints {printed[:_SHOWN]!r}"
        tally.differs(f"the answer to {image.name}: {said}, the text is {wanted[:_SHOWN]!r}")
    if tally.wrong and file.reader == "HFTokenizer" and _only_blanks(given, file):
        # the decoder of Llama's tokenizer.json strips a blank, and HFTokenizer does that to every token: nothing is wrong with the ids
        tally.unusable, tally.wrong = f"{tally.wrong} (ExecuTorch's HFTokenizer strips every token's blank)", ""
    return tally


def _bytes_without_text(given: _Given, ids: Sequence[int]) -> bytes:
    """The first run of byte pieces among some ids that is no UTF-8, if there is one: a model that answers with noise gives some."""
    run = bytearray()
    for name in (*(given.asked.pieces.names.get(number, "") for number in ids), ""):
        if is_byte_piece(name):
            run.append(int(name[3:5], 16))
            continue
        try:
            run.decode("utf-8")
        except UnicodeDecodeError:
            return bytes(run)
        run.clear()
    return b""


def is_byte_piece(piece: str) -> bool:
    """Whether a piece stands for one byte, as `<0x0A>`."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _only_blanks(given: _Given, file: Shipped) -> bool:
    return all(
        "".join(file.printed[i] for i in image.ids if i < len(file.printed) and i != given.tokenizer.eos_id).replace(
            " ", ""
        )
        == given.tokenizer.decode(list(image.ids)).replace(" ", "")
        for image in given.images
    )


COMPARISONS: dict[str, Callable[[_Given, Shipped], _Tally]] = {
    "loads": _loads,
    "texts": _texts,
    "pieces": _pieces,
    "prompts": _prompts,
    "answers": _answers_of,
}
"""By the second half of the name of the check that judges it."""
