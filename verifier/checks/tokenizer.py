"""`tokenizer.*`: the tokenizer file that ships, read by ExecuTorch's own C++ tokenizers, against the checkpoint's tokenizer.

The files beside the program are checked, or the one that `--tokenizer` names. In a checkpoint's own folder (config.json and weights) they are
there for the checkpoint's sake: an app takes one of them, so one has to do, and none may give wrong ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from verifier.checks.check import Fields, Finding, Need, check, failed, need, passed, skipped, unverified
from verifier.core.limits import limit
from verifier.core.types import Missing, Where
from verifier.families.conventions import EMBEDDING
from verifier.measures.evidence import Evidence, Part, Subjects
from verifier.measures.shipped import FileFinding, ShippedTokenizers

_TAKES = "tokenizer.bin (verifier.export_llava --with-artifacts writes it)"


@dataclass(frozen=True)
class Files:
    """The files that ship, what one comparison found in each, and what nothing can be found out about."""

    shipped: ShippedTokenizers
    findings: dict[str, FileFinding]
    lacking: dict[str, str]


def _need(comparison: str, *, golden: bool = False) -> Need[Files]:
    """All files, compared with the checkpoint's tokenizer in one way."""

    def take(evidence: Evidence) -> Files | Missing:
        shipped = evidence.shipped
        if isinstance(shipped, Missing):
            return shipped
        findings = {file.name: file.findings[comparison] for file in shipped.files if not file.problem}
        # a file that was not loaded fails once, in tokenizer.loads
        absent = (
            "" if comparison == "loads" else "nothing to compare: ExecuTorch cannot load the file (tokenizer.loads)"
        )
        lacking = {file.name: file.problem or ("" if file.loaded else absent) for file in shipped.files}
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
    within = limit("tokenizer.different")
    wrong = [
        f"{name}: {finding.wrong}"
        for name, finding in findings.items()
        if finding.wrong or not (finding.unusable or within.admits(finding.different))
    ]
    if wrong:
        return failed(f"{wrong[0]}. Ship the checkpoint's tokenizer as {_TAKES}.", fields)
    usable = {name: finding for name, finding in findings.items() if not finding.unusable}
    unusable = [f"{name} cannot be used in an app: {f.unusable}" for name, f in findings.items() if f.unusable]
    if not usable:
        return failed(f"{'; '.join(unusable)}. Ship the checkpoint's tokenizer as {_TAKES}.", fields)
    if not all(finding.compared for finding in usable.values()):
        return unverified("nothing was compared", fields)
    praised = [f"{name}: {_praise(finding)}" for name, finding in usable.items()]
    return passed("; ".join((*praised, *unusable)), fields)


def _praise(finding: FileFinding) -> str:
    said = f"{finding.compared} {finding.noted} equal to the checkpoint's" if finding.counted else finding.noted
    parted = [f"{count} {why}, for example {finding.examples[why]}" for why, count in finding.by_format.items()]
    return f"{said}; differences because of its format: {'; '.join(parted)}" if parted else said


def per_tokenizer(subjects: Subjects) -> tuple[str, ...]:
    """A check of every tokenizer file."""
    return subjects.tokenizers


def per_tokenizer_or_none(subjects: Subjects) -> tuple[str, ...]:
    """A check that also says that there is none."""
    return subjects.tokenizers or ("program",)


@check(
    "tokenizer.loads",
    step="mapping",
    needs=_need("loads"),
    cases=per_tokenizer_or_none,
    limit="tokenizer.different",
    optional=True,
)
def loads(files: Files, case: str) -> Finding:
    """ExecuTorch's runners load the file, and its BOS and EOS are the checkpoint's."""
    if not files.shipped.files:
        return skipped("no tokenizer file lies beside the program; give the one that ships with --tokenizer FILE")
    return _judge(files, case)


@check(
    "tokenizer.texts",
    step="mapping",
    needs=_need("texts"),
    cases=per_tokenizer,
    limit="tokenizer.different",
    overlap="a wrong piece also shows among the pieces; this one sees it in sentences",
)
def texts(files: Files, case: str) -> Finding:
    """500 texts (many scripts, emoji, digits, blanks, special tokens spelled out, long ones) get the checkpoint's ids. A difference that the format
    of the file explains is counted, and the message names it."""
    return _judge(files, case)


@check(
    "tokenizer.pieces",
    step="mapping",
    needs=_need("pieces"),
    cases=per_tokenizer,
    limit="tokenizer.different",
    overlap="a wrong piece that the texts contain shows there, too; this one looks at all pieces",
)
def pieces(files: Files, case: str) -> Finding:
    """Every piece of the checkpoint's vocabulary has the same id in the file: a text that contains the piece gets this id, and the id is printed as
    the piece. Pieces are merged in the checkpoint's order."""
    return _judge(files, case)


@check(
    "tokenizer.prompts",
    step="mapping",
    needs=_need("prompts"),
    cases=per_tokenizer,
    limit="tokenizer.different",
    overlap="a wrong prompt has wrong texts; this one looks at them as a runner puts them together",
)
def prompts(files: Files, case: str) -> Finding:
    """The golden prompts get the reference's ids, BOS first, if they are fed as ExecuTorch's runner feeds them: the text before the image and the
    text behind it are encoded apart. If the checkpoint puts no blank behind the image, the runner does so nevertheless; the message counts these
    prompts."""
    return _judge(files, case)


@check(
    "tokenizer.answers",
    step="mapping",
    needs=_need("answers", golden=True),
    cases=per_tokenizer,
    limit="tokenizer.different",
    overlap="a piece that is printed wrongly is also found among the pieces; this one looks at answers",
)
def answers(files: Files, case: str) -> Finding:
    """The golden answers, printed token by token as ExecuTorch's runner prints them, give the reference's text."""
    return _judge(files, case)


CHECKS = (loads, texts, pieces, prompts, answers)
