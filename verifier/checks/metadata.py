"""`structure.metadata`: the constant methods that a runner asks a program for before it runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from verifier.artifact.program import Scalar
from verifier.checks.check import Finding, check, failed, need, one_case, passed, unverified
from verifier.core.types import Missing, Where
from verifier.families.tokens.records import Statement
from verifier.measures.evidence import Evidence, Part
from verifier.measures.tokens import ImpliedMetadata

# executorch 1.5.1, extension/llm/runner/llm_runner_helper.cpp (get_llm_metadata, get_eos_ids); 128 was its default before, and is that of
# react-native-executorch (issues 194 and 201 there: prompts cut at the image).
FALLBACKS = {
    "get_max_seq_len": "ExecuTorch's runner refuses the file",
    "get_max_context_len": "ExecuTorch's runner assumes get_max_seq_len ({get_max_seq_len}), older releases and react-native-executorch 128",
    "get_vocab_size": "runners take the tokenizer's",
    "get_bos_id": "runners take the tokenizer's, and react-native-executorch none",
    "get_eos_ids": "runners take the tokenizer's alone",
    "use_kv_cache": "ExecuTorch's runner assumes true",
    "use_sdpa_with_kv_cache": "ExecuTorch's runner assumes false",
    "enable_dynamic_shape": "ExecuTorch's runner assumes false, and prefills token by token",
}
"""What runners assume for a method that a file lacks, by its name."""


@dataclass(frozen=True)
class Declared:
    """The evidence, and what checkpoint and recipe imply of the metadata methods."""

    evidence: Evidence
    implied: ImpliedMetadata


@need(Part.METADATA)
def declared(evidence: Evidence) -> Declared | Missing:
    """What the file declares, beside what is implied."""
    implied = evidence.implied
    return implied if isinstance(implied, Missing) else Declared(evidence, implied)


@check("structure.metadata", step="lowering", needs=declared, cases=one_case)
def metadata(given: Declared, _case: str) -> Finding:
    """The metadata methods return what checkpoint and recipe imply: BOS, all ids that end an answer, vocabulary size, lengths, kind of cache.

    A file that has more than half of the methods which this exporter writes, and none that other exporters write, must have all of them. Any other
    file passes, and the message says what a runner assumes for each method that is missing. What another exporter writes must be right, too.
    """
    evidence, expected, others = given.evidence, given.implied.expected, given.implied.others
    right = expected | others
    actual = {name: evidence.program.metadata(name) for name in right}
    present = {name: value for name, value in actual.items() if value is not None}
    if not present:
        return unverified("the file has none of the metadata methods that runners read")
    measured = {name: list(value) if isinstance(value, tuple) else value for name, value in present.items()}
    wrong = [
        f"{name} returns {_shown(value)}, expected {_shown(right[name])}{_source(name, given.implied.ends, evidence.tokens.eos_id)}"
        for name, value in present.items()
        if not _agrees(name, _ids(value), _ids(right[name]))
    ]
    missing = [name for name in expected if name not in present]
    absent = [_missing(name, expected[name], actual) for name in missing]
    ours = 2 * len(present) > len(expected) and not present.keys() & others.keys()
    if wrong or (absent and ours):
        place = wrong[0].split()[0] if wrong else missing[0]
        said = "; ".join([*wrong, *absent])
        message = (
            f"the metadata is wrong: {said}. Runners that read it begin, end or count wrongly; the weights are not affected. Export "
            "again with the checkpoint's own tokenizer and generation_config.json."
        )
        return failed(message, measured=measured, where=Where(method=place))
    notes = [*absent, *_disagreement(given.implied.begins, evidence.tokens.bos_id)]
    message = f"{len(present)} metadata methods, all as checkpoint and recipe imply" + "".join(
        f"; {note}" for note in notes
    )
    return passed(message, measured=measured)


def _agrees(name: str, actual: frozenset[Scalar], right: frozenset[Scalar]) -> bool:
    """`get_eos_id` names one of the ids that end an answer."""
    return actual <= right if name == "get_eos_id" else actual == right


def _ids(value: Scalar | tuple[Scalar, ...]) -> frozenset[Scalar]:
    """Runners keep ids in a set: their order means nothing, nor whether one stands alone."""
    return frozenset(value) if isinstance(value, tuple) else frozenset([value])


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _missing(name: str, right: object, actual: Mapping[str, object]) -> str:
    assumed = FALLBACKS[name].format(get_max_seq_len=actual["get_max_seq_len"])
    return f"{name} is missing (expected: {_shown(right)}): {assumed}"


def _source(name: str, said: Iterable[Statement], eos_id: int) -> str:
    """Where the ids that end an answer come from, if not from the tokenizer alone."""
    others = [s for s in said if set(s.ids) != {eos_id}]
    if name != "get_eos_ids" or not others:
        return ""
    return f" ({'; '.join(f'{s.where}: {_shown(s.ids)}' for s in others)})"


def _disagreement(said: Iterable[Statement], bos_id: int) -> list[str]:
    return [
        f"{s.where} has BOS {_shown(s.ids)}, the tokenizer has {bos_id}; prompts begin with the tokenizer's"
        for s in said
        if s.ids != (bos_id,)
    ]
