"""`tokenizer.*`: the tokenizer file that ships, read by ExecuTorch's own C++ tokenizers, against the checkpoint's tokenizer.

The files beside the program are checked, or the one that `--tokenizer` names. In a checkpoint's own folder (config.json and weights) they are
there for the checkpoint's sake: an app takes one of them, so one has to do, and none may give wrong ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from verifier.checks.check import Fields, Finding, Need, check, failed, need, passed, skipped, unverified
from verifier.core.limits import limit
from verifier.evidence import Evidence, Part, Subjects
from verifier.families.conventions import EMBEDDING
from verifier.families.tokens.spelling import BLANK, described, first_out_of_order, own_damage
from verifier.probes.tokenizer import Shipped, TokenizerEvidence
from verifier.runner.file_kinds import describe
from verifier.types import Missing, Where

_READERS = ("Llama2cTokenizer", "SPTokenizer", "HFTokenizer")
_SHOWN = 60
_TAKES = "tokenizer.bin (verifier.export_llava --with-artifacts writes it)"


@dataclass
class FileFinding:
    """What came of one file: `wrong` in words, or nothing; how many were compared; what its format does by design. `unusable` is a file that
    no app can use, where another one of the same folder may do."""

    wrong: str = ""
    unusable: str = ""
    counted: bool = True
    compared: int = 0
    different: int = 0
    by_format: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    noted: str = ""


Comparison = Callable[[Evidence, Shipped], FileFinding]


@dataclass(frozen=True)
class Files:
    """The files that ship, what was found out about each, and what nothing can be found out about."""

    shipped: TokenizerEvidence
    findings: dict[str, FileFinding]
    lacking: dict[str, str]


def _need(compare: Comparison, *, golden: bool = False) -> Need[Files]:
    """All files, compared with the checkpoint's tokenizer in one way."""

    def take(evidence: Evidence) -> Files | Missing:
        shipped = evidence.shipped
        if isinstance(shipped, Missing):
            return shipped
        findings = {file.path.name: _finding(evidence, file, compare) for file in shipped.files}
        # a file that was not loaded fails once, in tokenizer.loads
        absent = "" if compare is _loads else "nothing to compare: ExecuTorch cannot load the file (tokenizer.loads)"
        lacking = {file.path.name: file.problem or ("" if file.reader else absent) for file in shipped.files}
        return Files(shipped, findings, lacking)

    return need(Part.TOKENIZERS, golden=golden)(take)


def _judge(files: Files, case: str) -> Finding:
    shipped, lacking = files.shipped, files.lacking
    if not shipped.together:
        return unverified(lacking[case]) if lacking[case] else _single(files.findings[case])
    problem = next((file.problem for file in shipped.files if file.problem), "")
    if not problem and all(lacking.values()):
        problem = next(iter(lacking.values()))
    return unverified(problem) if problem else _together(files.findings)


def _finding(evidence: Evidence, file: Shipped, compare: Comparison) -> FileFinding:
    if not file.reader:
        return FileFinding(unusable=_refused(file))
    return compare(evidence, file)


def _fields(findings: list[FileFinding]) -> Fields:
    return {
        "measured": {
            "compared": sum(f.compared for f in findings),
            "different": sum(f.different for f in findings),
            "by_format": sum(sum(f.by_format.values()) for f in findings),
        },
        "allowed": {"different": limit("tokenizer.different").value},
        "where": Where(method=EMBEDDING),
    }


def _single(finding: FileFinding) -> Finding:
    said = finding.wrong or finding.unusable
    if said or not limit("tokenizer.different").admits(finding.different):
        return failed(f"{said}. Ship the checkpoint's tokenizer as {_TAKES}.", _fields([finding]))
    if not finding.compared:
        return unverified("nothing was compared", _fields([finding]))
    return passed(_praise(finding), _fields([finding]))


def _together(findings: dict[str, FileFinding]) -> Finding:
    """A checkpoint's own folder: no file may be wrong, and one has to be usable."""
    fields = _fields([finding for finding in findings.values() if not finding.unusable])
    wrong = [f"{name}: {finding.wrong}" for name, finding in findings.items() if finding.wrong]
    if wrong:
        return failed(f"{wrong[0]}. Ship the checkpoint's tokenizer as {_TAKES}.", fields)
    usable = {name: finding for name, finding in findings.items() if not finding.unusable}
    unusable = [f"{name} is not for an app: {f.unusable}" for name, f in findings.items() if f.unusable]
    if not usable:
        return failed(f"{'; '.join(unusable)}. Ship the checkpoint's tokenizer as {_TAKES}.", fields)
    if not all(finding.compared for finding in usable.values()):
        return unverified("nothing was compared", fields)
    praised = [f"{name}: {_praise(finding)}" for name, finding in usable.items()]
    return passed("; ".join((*praised, *unusable)), fields)


def _praise(finding: FileFinding) -> str:
    said = f"{finding.compared} {finding.noted} as the checkpoint's" if finding.counted else finding.noted
    parted = [f"{count} {why}, for example {finding.examples[why]}" for why, count in finding.by_format.items()]
    return f"{said}; but, as its format has it, {'; '.join(parted)}" if parted else said


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


def _loads(evidence: Evidence, file: Shipped) -> FileFinding:
    tokenizer = evidence.tokenizer
    said = f"ExecuTorch's {file.reader} loads it, {file.vocabulary} pieces"
    finding = FileFinding(noted=said, counted=False, compared=1)
    if file.reader not in _READERS:
        is_ = describe(file.path.read_bytes()[:4096])
        finding.wrong = f"ExecuTorch loads it as {file.reader}, which no LLaVA of Llama has: the file is {is_}"
    elif file.crash and not file.ids:
        finding.wrong = f"ExecuTorch's {file.reader} crashes: {file.crash}"
    elif damage := own_damage(file.path):
        finding.wrong = damage
    elif file.reader != "HFTokenizer" and (file.bos, file.eos) != (tokenizer.bos_id, tokenizer.eos_id):
        # HFTokenizer knows neither: its BOS comes with the post-processor (tokenizer.prompts), EOS from the program (structure.metadata)
        got, wanted = f"BOS {file.bos} and EOS {file.eos}", f"{tokenizer.bos_id} and {tokenizer.eos_id}"
        finding.wrong = f"it has {got}, the checkpoint {wanted}"
    finding.different = int(bool(finding.wrong))
    return finding


def _compare(  # noqa: PLR0917
    finding: FileFinding,
    evidence: Evidence,
    file: Shipped,
    text: str,
    actual: tuple[int, ...] | str | None,
    front: list[int],
) -> None:
    """Hold the ids of one text against the checkpoint's, or against those that the format explains."""
    assert not isinstance(evidence.shipped, Missing)
    shipped = evidence.shipped
    if actual is None:
        actual = f"the process ended here: {file.crash}"
    expected = [*front, *evidence.tokenizer.encode(text)]
    finding.compared += 1
    if not isinstance(actual, str) and list(actual) == expected:
        return
    part = shipped.explained(file, text)
    same = part.ids is None if isinstance(actual, str) else part.ids is not None and list(actual) == [*front, *part.ids]
    if part.why and same and not file.crash:
        finding.by_format[part.why] += 1
        finding.examples.setdefault(part.why, repr(text[:_SHOWN]))
        return
    finding.different += 1
    finding.wrong = finding.wrong or _first_difference(evidence, text, actual, expected)


def _first_difference(evidence: Evidence, text: str, actual: tuple[int, ...] | str, expected: list[int]) -> str:
    assert not isinstance(evidence.shipped, Missing)
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
    if isinstance(actual, str):
        return f"{shown} cannot be encoded: {actual}"
    names = evidence.shipped.pieces.names
    pairs = enumerate(zip_longest(actual, expected))
    at, (got, wanted) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
    one, two = ("the end" if number is None else described([number], names) for number in (got, wanted))
    return f"token {at} of {shown} is {one}, the checkpoint's tokenizer has {two}"


def _texts(evidence: Evidence, file: Shipped) -> FileFinding:
    assert not isinstance(evidence.shipped, Missing)
    finding = FileFinding(noted="texts")
    for text, ids in _answers(evidence.shipped.texts, file.ids):
        _compare(finding, evidence, file, text, ids, [])
    return finding


def _answers(
    texts: tuple[str, ...], ids: tuple[tuple[int, ...] | str, ...]
) -> Iterator[tuple[str, tuple[int, ...] | str | None]]:
    """Texts with what came back; of those behind a crash the first only."""
    for at, text in enumerate(texts):
        yield text, ids[at] if at < len(ids) else None
        if at >= len(ids):
            return


def _pieces(evidence: Evidence, file: Shipped) -> FileFinding:
    assert not isinstance(evidence.shipped, Missing)
    shipped = evidence.shipped
    finding = FileFinding(noted="pieces and merges")
    for text, ids in _answers(shipped.pieces_texts, file.ids[len(shipped.texts) :]):
        _compare(finding, evidence, file, text, ids, [])
        if ids is None:
            return finding
    finding.compared += len(shipped.pieces.merges)
    out_of_order = first_out_of_order(file.path, shipped.pieces.merges)
    if out_of_order is not None:
        one, two = out_of_order
        said = f"it makes the piece {two!r} before {one!r}, the checkpoint the other way round"
        finding.wrong, finding.different = finding.wrong or said, finding.different + 1
    for number, piece in sorted(shipped.pieces.names.items()):
        if number >= len(file.printed):
            if file.crash:
                said = f"the id {number} cannot be printed: the process ended here, {file.crash}"
                finding.wrong, finding.different = finding.wrong or said, finding.different + 1
                break
            if number < shipped.asked:
                said = f"it has {file.vocabulary} pieces, the checkpoint more: {described([number], shipped.pieces.names)} is not in it"
                finding.wrong, finding.different = finding.wrong or said, finding.different + 1
                break
            continue
        _compare_print(finding, file, number, piece)
    return finding


def _compare_print(finding: FileFinding, file: Shipped, number: int, piece: str) -> None:
    printed, wanted = file.printed[number], _printed_as(piece)
    finding.compared += 1
    if printed == wanted:
        return
    if wanted != piece.replace(BLANK, " "):  # a byte
        why = "byte pieces (ExecuTorch prints them as text or not at all)"
        if printed in (piece, "", "\0") or printed.startswith("error: "):
            finding.by_format[why] += 1
            finding.examples.setdefault(why, f"{piece} as {printed!r}")
            return
    elif file.reader == "HFTokenizer" and printed.strip(" ") == wanted.strip(" "):
        why = "pieces printed without their blank (see tokenizer.answers)"
        finding.by_format[why] += 1
        finding.examples.setdefault(why, f"{piece} as {printed!r}")
        return
    finding.different += 1
    finding.wrong = finding.wrong or f"the id {number} is printed as {printed!r}, the checkpoint's piece is {piece!r}"


def _printed_as(piece: str) -> str:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)]).decode("utf-8", "surrogateescape").replace("\0", "")
    return piece.replace(BLANK, " ")


def _prompts(evidence: Evidence, file: Shipped) -> FileFinding:
    assert not isinstance(evidence.shipped, Missing)
    shipped = evidence.shipped
    behind = evidence.tokenizer.encode_behind
    finding = FileFinding()
    blanks = [text for text in shipped.behind if behind(text) != evidence.tokenizer.encode(text)]
    for text, ids in _answers(shipped.before, file.with_bos):
        _compare(finding, evidence, file, text, ids, shipped.front)
    first = len(shipped.texts) + len(shipped.pieces_texts)
    for text, ids in _answers(shipped.behind, file.ids[first:]):
        _compare(finding, evidence, file, text, ids, [])
    finding.noted = "texts of the golden prompts, each encoded by itself, BOS before the first,"
    if blanks:
        one, two = evidence.tokenizer.encode(blanks[0]), behind(blanks[0])
        tail = f"{described(one[:1], shipped.pieces.names)} more than the checkpoint's {len(two)} tokens"
        why = "behind <image> (ExecuTorch's runner begins a new text there)"
        finding.by_format[why] += len(blanks)
        finding.examples[why] = f"{blanks[0][:_SHOWN]!r} gets {tail}"
    return finding


def _answers_of(evidence: Evidence, file: Shipped) -> FileFinding:
    finding = FileFinding(noted="answers, printed token by token,")
    for image in evidence.golden.images:
        ids = [number for number in image.ids if number != evidence.tokenizer.eos_id]
        lacking = next((number for number in ids if not 0 <= number < len(file.printed)), None)
        printed = "" if lacking is not None else "".join(file.printed[number] for number in ids).strip()
        wanted = evidence.tokenizer.decode(ids)
        finding.compared += 1
        if printed == wanted:
            continue
        finding.different += 1
        if not finding.wrong:
            said = f"the file has no id {lacking}" if lacking is not None else f"a runner prints {printed[:_SHOWN]!r}"
            finding.wrong = f"the answer to {image.name}: {said}, the text is {wanted[:_SHOWN]!r}"
    if finding.wrong and file.reader == "HFTokenizer" and _only_blanks(evidence, file):
        # the decoder of Llama's tokenizer.json strips a blank, and HFTokenizer does that to every token: nothing is wrong with the ids
        finding.unusable, finding.wrong = f"{finding.wrong} (ExecuTorch's HFTokenizer strips every token's blank)", ""
    return finding


def _only_blanks(evidence: Evidence, file: Shipped) -> bool:
    return all(
        "".join(file.printed[i] for i in image.ids if i < len(file.printed) and i != evidence.tokenizer.eos_id).replace(
            " ", ""
        )
        == evidence.tokenizer.decode(list(image.ids)).replace(" ", "")
        for image in evidence.golden.images
    )


def per_tokenizer(subjects: Subjects) -> tuple[str, ...]:
    """A check of every tokenizer file."""
    return subjects.tokenizers


def per_tokenizer_or_none(subjects: Subjects) -> tuple[str, ...]:
    """A check that also says that there is none."""
    return subjects.tokenizers or ("program",)


@check(
    "tokenizer.loads",
    step="mapping",
    needs=_need(_loads),
    cases=per_tokenizer_or_none,
    limit="tokenizer.different",
    optional=True,
)
def loads(files: Files, case: str) -> Finding:
    """ExecuTorch's runners load the file, and its BOS and EOS are the checkpoint's."""
    if not files.shipped.files:
        return skipped("no tokenizer file lies beside the program; give the one that ships with --tokenizer FILE")
    return _judge(files, case)


@check("tokenizer.texts", step="mapping", needs=_need(_texts), cases=per_tokenizer, limit="tokenizer.different")
def texts(files: Files, case: str) -> Finding:
    """500 texts (many scripts, emoji, digits, blanks, special tokens spelled out, long ones) get the checkpoint's ids. A difference that the format
    of the file explains is counted, and the message names it."""
    return _judge(files, case)


@check("tokenizer.pieces", step="mapping", needs=_need(_pieces), cases=per_tokenizer, limit="tokenizer.different")
def pieces(files: Files, case: str) -> Finding:
    """Every piece of the checkpoint's vocabulary has the same id in the file: a text that contains the piece gets this id, and the id is printed as
    the piece. Pieces are merged in the checkpoint's order."""
    return _judge(files, case)


@check("tokenizer.prompts", step="mapping", needs=_need(_prompts), cases=per_tokenizer, limit="tokenizer.different")
def prompts(files: Files, case: str) -> Finding:
    """The golden prompts get the reference's ids, BOS first, if they are fed as ExecuTorch's runner feeds them: the text before the image and the
    text behind it are encoded apart. If the checkpoint puts no blank behind the image, the runner does so nevertheless; the message counts these
    prompts."""
    return _judge(files, case)


@check(
    "tokenizer.answers",
    step="mapping",
    needs=_need(_answers_of, golden=True),
    cases=per_tokenizer,
    limit="tokenizer.different",
)
def answers(files: Files, case: str) -> Finding:
    """The golden answers, printed token by token as ExecuTorch's runner prints them, give the reference's text."""
    return _judge(files, case)


CHECKS = (loads, texts, pieces, prompts, answers)
