"""`use.*`: ExecuTorch's own `MultimodalRunner`, the C++ behind its Android and iOS apps, asked on the same file as our driver.

What that runner does to every file, as a blank that it puts behind every image, is said with its cost, and is no fault of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from verifier.checks.check import (
    OFFICIAL,
    Fields,
    Finding,
    check,
    failed,
    fixed_cases,
    need,
    one_case,
    passed,
    per_image,
    skipped,
    unverified,
)
from verifier.core.limits import Limit, limit
from verifier.core.prices import stated_price
from verifier.core.types import Missing, Where
from verifier.families.conventions import DECODER
from verifier.measures.evidence import Evidence, Part
from verifier.measures.use import SITUATIONS, Candidate, Expected, Fed, FedPrompt, Situation, UseEvidence
from verifier.runner.official import Said, Told

TEXT_KEPT = "use.text_kept"
_RUNNER = "ExecuTorch's MultimodalRunner"
_WHERE = Where(method=DECODER)
_SHOWN = 80
_NO_TEXT = "the answer has a byte that is no text, which the Python face of ExecuTorch's runner cannot hand over"
_NO_PIECE = "the answer begins with an id that the tokenizer file has no piece for: the runner tells pieces"
_FEED_IDS = "Feed token ids (make_token_input) in place of text, or accept the answers that are lost"
_LOOK = "Compare metadata (structure.metadata), tokenizer file (tokenizer.*) and the versions of runner and exporter"


@dataclass(frozen=True)
class Used:
    """What was asked of ExecuTorch's runner, with the limits that a user stated."""

    use: UseEvidence
    prices: dict[str, float]

    @property
    def fed(self) -> dict[str, Fed]:
        """The golden conversations whose answers are text."""
        return {
            name: one
            for name, one in self.use.fed.items()
            if not (_no_text(_asked(one.ids)) or _no_text(_asked(one.text)))
        }

    def printed(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """What the runner prints for tokens, piece by piece."""
        known = range(len(self.use.printed))
        return tuple(self.use.printed[token] if token in known else f"<{token}>" for token in ids)

    def compared(self, pieces: tuple[str, ...], ids: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the runner printed, and what it prints for some tokens: both whole, or both up to the first id that its tokenizer has no piece for. It prints
        nothing for such a token, so that what comes behind is not told apart."""
        wanted, known = self.printed(ids), range(len(self.use.printed))
        nameless = next((at for at, token in enumerate(ids) if token not in known), None)
        return (pieces, wanted) if nameless is None else (pieces[:nameless], wanted[:nameless])

    def explains(self, ids: tuple[int, ...], pieces: tuple[str, ...]) -> bool:
        """Whether what was printed is these tokens, as far as they are told apart."""
        actual, wanted = self.compared(pieces, ids)
        return bool(wanted) and actual == wanted


@need(Part.USE, golden=True)
def used(evidence: Evidence) -> Used | Missing:
    """What ExecuTorch's runner was asked."""
    return evidence.use if isinstance(evidence.use, Missing) else Used(evidence.use, evidence.prices)


Judge = Callable[[Used, str], Finding]


def _unless_refused(judge: Judge) -> Judge:
    """A judge that is asked only where the runner took program and tokenizer. If it took none, nothing is verified for who asked for that runner; others
    are told."""

    def judged(given: Used, case: str) -> Finding:
        if not given.use.refused:
            return judge(given, case)
        said = f"{_RUNNER} does not take the program with {given.use.tokenizer}: {given.use.refused}"
        return unverified(said) if given.use.asked else skipped(said)

    judged.__doc__ = judge.__doc__
    return judged


def _died(told: Told) -> str:
    """What became of a talk that ended the process; nothing for one that did not."""
    what = {"aborted": "ends the process", "timeout": "does not return", "unheld": "was not asked"}.get(told.outcome)
    return f"{_RUNNER} {what}: {told.message}" if what else ""


def _no_text(said: Said | None) -> bool:
    return said is not None and "codec can't decode" in said.error


def _asked(told: Told) -> Said | None:
    """What the last call of a talk gave."""
    return told.said[-1] if told.said else None


def _shown(pieces: tuple[str, ...]) -> str:
    text = "".join(pieces).strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def _parted(actual: tuple[str, ...], expected: tuple[str, ...]) -> int | None:
    """The first piece that differs, None if none does."""
    if actual == expected:
        return None
    pairs = enumerate(zip(actual, expected, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(actual), len(expected)))


@check(
    "use.answers",
    step="use",
    needs=used,
    cases=per_image,
    limit="equal",
    having={OFFICIAL},
    optional=True,
    overlap="the bench has no fault in ExecuTorch's own runner; tests change what it answered",
)
@_unless_refused
def answers(given: Used, name: str) -> Finding:
    """ExecuTorch's runner, given the reference's ids and the picture's pixels, answers with the tokens that our driver gets from the same file: positions,
    cache, argmax and stop are the same."""
    fed = given.use.fed.get(name)
    if fed is None:
        return skipped("of a large model, the first, the middle and the last golden image are asked about")
    if died := _died(fed.ids):
        return failed(f"{died}. {_LOOK}.", where=_WHERE)
    said = _asked(fed.ids)
    if said is None:
        return unverified("the runner was not asked")
    if _no_text(said):
        return skipped(_NO_TEXT)
    if said.error:
        return failed(f"{_RUNNER} answers with an error: {said.error}. {_LOOK}.", where=_WHERE)
    if not fed.own:
        return unverified("our driver has no answer to compare with: see layers.finite and greedy.golden")
    actual, expected = given.compared(said.pieces, fed.own)
    if not expected:
        return skipped(_NO_PIECE)
    at = _parted(actual, expected)
    fields: Fields = {
        "measured": {"tokens": len(said.pieces), "prompt_tokens": said.prompt_tokens},
        "allowed": {"tokens": len(fed.own), "prompt_tokens": fed.prompt_tokens},
        "where": _WHERE,
    }
    if said.prompt_tokens != fed.prompt_tokens:
        counted = f"{_RUNNER} counts {said.prompt_tokens} tokens of a prompt that has {fed.prompt_tokens}"
        return failed(f"{counted}. {_LOOK}.", fields)
    if at is not None:
        got, wanted = ("the end" if at >= len(p) else repr(p[at]) for p in (actual, expected))
        differs = f"{_RUNNER} gives {got} at token {at} (position {fed.prompt_tokens + at - 1}), our driver {wanted} on the same file"
        return failed(f"{differs}: {_shown(said.pieces)}, expected {_shown(expected)}. {_LOOK}.", fields)
    rest = "" if len(expected) == len(fed.own) else f"; then comes an id that {given.use.tokenizer} has no piece for"
    return passed(f"{len(expected)} tokens equal our driver's, {_shown(expected)}{rest}", fields)


@check(
    "use.tokens",
    step="use",
    needs=used,
    cases=one_case,
    limit="equal",
    having={OFFICIAL},
    optional=True,
    overlap="a wrong tokenizer file is found by tokenizer.*; this one sees what the runner itself makes of a text",
)
@_unless_refused
def tokens(given: Used, _case: str) -> Finding:
    """The ids that ExecuTorch's runner makes of the golden prompts' text are the checkpoint's, or what that runner does to every file explains both their
    number and the answer: our driver, given these ids, answers the same."""
    same, explained, fed = 0, list[tuple[FedPrompt, Candidate]](), given.fed
    if given.use.fed and not fed:
        return skipped(_NO_TEXT)
    for prompt in (one.among(fed) for one in given.use.prompts):
        unheard = next((name for name in prompt.images if _count(fed[name].text) < 0), None)
        if unheard is not None:
            told = fed[unheard].text
            return failed(
                f"the prompt of {unheard}, fed as text, gets no answer: {told.message}. {_LOOK}.", where=_WHERE
            )
        if all(_same_text(fed[name]) for name in prompt.images):
            same += len(prompt.images)
            continue
        finding = _reading_of(given, prompt)
        if isinstance(finding, Finding):
            return finding
        explained.append((prompt, finding))
    count = sum(len(prompt.images) for prompt, _ in explained)
    fields: Fields = {"measured": {"prompts": same + count, "other_ids": count}, "where": _WHERE}
    if not same + count:
        return unverified("no prompt was fed as text")
    if not count:
        return passed(f"{same} prompts, fed as text, have the checkpoint's number of tokens and its answers", fields)
    worst = max(explained, key=lambda pair: len(pair[0].images))
    number = given.use.fed[worst[0].images[0]].prompt_tokens
    what = (
        f"{_RUNNER} puts other ids into {count} of {same + count} prompts that it is given as text: {' and '.join(worst[1].deviations)} "
        f"({worst[1].prompt_tokens} tokens, the reference has {number}); our driver answers the same to these ids"
    )
    return passed(f"{what}. {_FEED_IDS} (use.text).", fields, exception=what)


def _count(told: Told) -> int:
    said = _asked(told)
    return -1 if said is None or said.error else said.prompt_tokens


def _same_text(fed: Fed) -> bool:
    """Whether number of tokens and answer are those of the reference's ids."""
    by_text, by_ids = _asked(fed.text), _asked(fed.ids)
    if by_text is None or by_ids is None:
        return False
    return by_text.prompt_tokens == fed.prompt_tokens and by_text.pieces == by_ids.pieces and bool(by_text.pieces)


def _reading_of(given: Used, prompt: FedPrompt) -> Candidate | Finding:
    """What explains number and answers of a prompt that was fed as text; a failure if nothing does, or if it is not the runner's own doing."""
    heard = {name: _asked(given.use.fed[name].text) for name in prompt.looked_at}

    def explains(one: Candidate) -> bool:
        return bool(heard) and all(
            said is not None
            and said.prompt_tokens == one.prompt_tokens
            and given.explains(one.answers.get(name, ()), said.pieces)
            for name, said in heard.items()
        )

    fitting = [one for one in prompt.candidates if explains(one)]
    own = next((one for one in fitting if one.runners_own), None)
    if own is not None:
        return own
    fed = given.use.fed[prompt.images[0]]
    count = _count(fed.text)
    fields: Fields = {
        "measured": {"prompt_tokens": count},
        "allowed": {"prompt_tokens": fed.prompt_tokens},
        "where": _WHERE,
    }
    shown = f"the prompt of {prompt.images[0]}, fed as text, has {count} tokens, the checkpoint's tokenizer makes {fed.prompt_tokens}"
    if fitting:
        reading = " and ".join(fitting[0].deviations) or "the checkpoint's ids"
        return failed(
            f"{shown}: {reading}. Our driver answers the same to these ids. Correct what the app feeds.", fields
        )
    tried = len(prompt.candidates)
    return failed(
        f"{shown}, and none of {tried} hypotheses of this length explains the answer. Is {given.use.tokenizer} the checkpoint's? See tokenizer.*.",
        fields,
    )


@check(
    "use.text",
    step="use",
    needs=used,
    cases=one_case,
    limit=f"price.{TEXT_KEPT}",
    having={OFFICIAL},
    optional=True,
    overlap="which answers a blank costs is the checkpoint's matter; the bench's checkpoint pays the same for sound files",
)
@_unless_refused
def text(given: Used, _case: str) -> Finding:
    """An app that feeds text gets the answers that the reference's ids give. Which ones it loses is a price of that way to ask, with a budget
    (`--budget text=1` where none may be lost)."""
    fed = given.fed
    if given.use.fed and not fed:
        return skipped(_NO_TEXT)
    broken = next((name for name, one in fed.items() if _count(one.text) < 0 <= _count(one.ids)), None)
    if broken is not None:
        said = _died(fed[broken].text) or f"an error: {fed[broken].text.message}"
        return failed(f"{broken}, fed as text, has no answer: {said}. {_LOOK}.", where=_WHERE)
    pairs = {
        name: (by_ids.pieces, by_text.pieces)
        for name, one in fed.items()
        if (by_ids := _asked(one.ids)) and (by_text := _asked(one.text)) and by_ids.pieces and by_text.pieces
    }
    if not pairs or len(pairs) < len(fed):
        return unverified(f"{len(fed) - len(pairs)} of {len(fed)} golden conversations have no two answers to compare")
    lost = [name for name, (by_ids, by_text) in pairs.items() if by_ids != by_text]
    share, bound = 1 - len(lost) / len(pairs), _allowed(given.prices)
    fields: Fields = {"measured": {"text_kept": share}, "allowed": {"text_kept": bound.value}, "where": _WHERE}
    if not lost:
        return passed(f"{len(pairs)} answers to text equal those to the reference's ids", fields)
    whole, other = pairs[lost[0]]
    what = (
        f"an app that feeds {_RUNNER} text gets {len(lost)} of {len(pairs)} answers otherwise than by the reference's ids: {', '.join(lost)}; for "
        f"{lost[0]} {_shown(other)} in place of {_shown(whole)}"
    )
    if not bound.admits(share):
        return failed(
            f"{what}. The budget that was stated allows no less than a share of {bound.value:.4g} to stay. {_FEED_IDS}.",
            fields,
        )
    return passed(f"{what}. {_FEED_IDS}.", fields, exception=what)


def _allowed(prices: dict[str, float]) -> Limit:
    return stated_price(TEXT_KEPT, prices[TEXT_KEPT]) if TEXT_KEPT in prices else limit(f"price.{TEXT_KEPT}")


@check(
    "use.turns",
    step="use",
    needs=used,
    cases=fixed_cases(*SITUATIONS),
    limit="equal",
    having={OFFICIAL},
    optional=True,
    overlap="the bench has no fault in ExecuTorch's own runner; tests change what it answered",
)
@_unless_refused
def turns(given: Used, case: str) -> Finding:
    """Second turns, resets, pictures in turn, a prefill apart, text alone, a stop, the end of the cache, prompts that are too long or empty, and the edges
    of `seq_len` and `max_new_tokens`: ExecuTorch's runner answers as our driver does, or ends the call with an error, and never the process."""
    situation = given.use.situations.get(case)
    if situation is None:
        return unverified("the runner was not asked")
    if died := _died(situation.told):
        return failed(
            f"{died}. An app must not ask like this, or the file is at fault: see structure.limits.", where=_WHERE
        )
    return _judged(given, situation)


def _judged(given: Used, situation: Situation) -> Finding:
    """Every call in turn."""
    if not situation.expected:
        return unverified("nothing was expected")
    found: list[str] = []
    for at, expected in enumerate(situation.expected):
        said = situation.answers[at] if at < len(situation.answers) else None
        if said is None and at and situation.expected[at - 1].ends == "error":
            return skipped(f"the cache has no room for all its calls: {found[-1]}, as it has to")
        if said is None:
            return unverified(f"call {at} of {len(situation.expected)} was not made")
        finding = _of_call(given, said, expected)
        if finding.verdict != "pass":
            return finding.but(where=_WHERE)
        found.append(finding.message)
    return passed("; ".join(dict.fromkeys(found)), where=_WHERE)


def _of_call(given: Used, said: Said, expected: Expected) -> Finding:
    """One call against what had to come of it."""
    actual, wanted = given.compared(said.pieces, expected.own)
    if expected.ends == "error":
        if not said.error:
            return failed(
                f"the call returns {_shown(said.pieces)}, expected an error: there is no room for this answer, or nothing was asked"
            )
        if wanted and said.pieces and actual != wanted:
            return failed(f"before its error the call gives {_shown(said.pieces)}, our driver {_shown(wanted)}")
        before = f" after it gave {len(said.pieces)} token" if said.pieces else ""
        return passed(f"the call ends in an error{before}: {said.error}")
    if _no_text(said):
        return skipped(_NO_TEXT)
    if said.error:
        return failed(f"the call ends in an error: {said.error}; our driver answers {_shown(wanted)}")
    if not expected.own:
        return unverified("our driver has no answer to compare with")
    if not wanted:
        return skipped(_NO_PIECE)
    least = len(wanted) if expected.whole else min(expected.least, len(wanted))
    at = _parted(actual, wanted[: max(least, len(actual))])
    if at is not None:
        return failed(
            f"the answer differs from our driver's at token {at}: {_shown(said.pieces)}, expected {_shown(wanted)}"
        )
    return passed(f"{len(said.pieces)} tokens equal our driver's, {_shown(said.pieces)}")


CHECKS = (answers, tokens, text, turns)
