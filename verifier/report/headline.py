"""What a failed run says first: who is at fault, whether the bytes may be right, and what must not ship. One table.

"These bytes do not compute the checkpoint" is said only if a check failed that looked at a number of the file, or at what the program
computed where no kernel or device is at fault.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal

from verifier.core.records import JsonObject

Accused = Literal[
    "bytes",
    "answers",
    "device",
    "runtime",
    "definition",
    "convention",
    "price",
    "distance",
    "graph",
    "calls",
    "origin",
    "prompt",
    "tokenizer",
    "pixels",
    "metadata",
    "runner",
    "budget",
    "unknown",
]
"""`answers` are numbers that the program computed: its bytes are accused, unless a kernel or the device was found at fault before."""
_COMPUTED: tuple[Accused, ...] = ("answers", "runtime", "device")

ACCUSED: tuple[tuple[str, Accused], ...] = (
    ("structure.signatures", "convention"),
    ("structure.limits", "metadata"),
    ("structure.metadata", "metadata"),
    ("structure.operators", "runner"),
    ("structure.delegation", "budget"),
    ("structure.census", "graph"),
    ("structure.manifest", "origin"),
    ("structure.*", "bytes"),
    ("mapping.*", "definition"),
    ("processor.*", "pixels"),
    ("pixels.*", "pixels"),
    ("preprocess.*", "pixels"),
    ("splice.*", "prompt"),
    ("prompt.*", "prompt"),
    ("tokenizer.*", "tokenizer"),
    ("weights.*", "bytes"),
    ("device.*", "device"),
    ("layers.coverage", "runtime"),
    ("layers.kernel", "runtime"),
    ("layers.constants", "bytes"),
    ("layers.ranges", "price"),
    ("layers.profile", "price"),
    ("layers.price", "price"),
    ("layers.*", "answers"),
    ("kvcache.memory", "bytes"),
    ("kvcache.mask", "answers"),
    ("kvcache.*", "runtime"),
    ("threads.*", "runtime"),
    ("embedding.*", "answers"),
    ("vision.*", "answers"),
    ("logits.*", "answers"),
    ("greedy.free", "runner"),
    ("greedy.history", "runtime"),
    ("greedy.*", "answers"),
    ("runner.*", "runner"),
    ("app.*", "runner"),
    ("use.*", "runner"),
    ("budget.*", "budget"),
)
"""Globs of check ids; the first that matches says whom a failure accuses."""

HEADLINES: dict[Accused, tuple[str, str]] = {
    "bytes": ("These bytes do not compute the checkpoint. Do not ship them.", "the bytes"),
    "device": (
        "The device does not compute what the file says. The bytes may be right; do not ship them to this kind of device.",
        "the device",
    ),
    "runtime": (
        "The runtime does not compute what the file says: a kernel, threads or memory of this build. The bytes may be right; do not ship "
        "them with this runtime.",
        "the runtime",
    ),
    "definition": (
        "The eager model that exports are made from is not the checkpoint's. Nothing is proved about these bytes; do not ship them.",
        "the eager model",
    ),
    "convention": (
        "The methods of this file do not take and return what runners rely on. Its weights may be right; do not ship it to these runners.",
        "the signatures",
    ),
    "price": (
        "Quantization costs more than this recipe should. The file is what the recipe made; do not ship it before calibration or recipe are changed.",
        "the cost of quantization",
    ),
    "distance": (
        "The program is further from fp32 than quantization may cost, and what would tell why could not be compared. Do not ship it before it is "
        "explained.",
        "an unexplained distance from fp32",
    ),
    "graph": (
        "This program has other instructions than the clean export of its recipe. No wrong number is shown by that alone; do not ship it "
        "before the difference is explained.",
        "the instructions",
    ),
    "calls": (
        "A call of the program ends in an error instead of an answer. No wrong number is shown by that alone; do not ship it before the call "
        "works.",
        "a call that fails",
    ),
    "origin": (
        "These are not the bytes that the manifest describes. Do not ship them before it is known where they come from.",
        "the origin of the bytes",
    ),
    "prompt": (
        "The prompt is not the one that the checkpoint expects. The bytes may be right; do not ship an app that asks like this.",
        "the prompt",
    ),
    "tokenizer": (
        "The tokenizer file that is to ship is not the checkpoint's. The bytes of the program may be right; do not ship this tokenizer.",
        "the tokenizer file",
    ),
    "pixels": (
        "The pixels that the program is given are not those that the checkpoint expects. The bytes may be right; do not ship an app that "
        "prepares pictures like this.",
        "the pixels",
    ),
    "metadata": (
        "The file tells runners wrong limits or special tokens. Its weights may be right; do not ship it before its metadata is corrected.",
        "the metadata",
    ),
    "runner": (
        "The file is not used as it has to be: the runner lacks something or feeds it wrongly. The bytes may be right; do not ship this runner.",
        "the runner",
    ),
    "budget": (
        "The file costs more memory, time or space than it may. Nothing is wrong with its numbers by that; do not ship it as it is.",
        "the budget",
    ),
    "unknown": (
        "A check failed. Do not ship these bytes before it is explained.",
        "a check of no known kind",
    ),
}
"""The most severe first: the sentence, and a short name for what is wrong besides."""


def accused_by(check_id: str) -> Accused:
    """Whom a failure of this check accuses, by itself."""
    return next((accused for glob, accused in ACCUSED if fnmatchcase(check_id, glob)), "unknown")


def accused(checks: Iterable[JsonObject]) -> tuple[Accused, ...]:
    """Who is at fault by the failed checks of a report, which stand in the order of the registry; the most severe first."""
    made = list(checks)
    placed = [_placed(check) for check in made if check["verdict"] == "fail"]
    if any(check["verdict"] == "error" and check["step"] == "lowering" for check in made):
        placed = ["distance" if kind == "price" else kind for kind in placed]  # that it is the recipe's is not shown
    kinds = set(placed) - set(_COMPUTED)
    first = next((kind for kind in placed if kind in _COMPUTED), None)
    if first is not None:  # what was computed behind it follows from it
        kinds.add("bytes" if first == "answers" else first)
    return tuple(kind for kind in HEADLINES if kind in kinds)


def _placed(check: JsonObject) -> Accused:
    """A kernel of another kind of machine than this one's is the device's."""
    kind: Accused = check.get("accuses") or accused_by(check["id"])
    return "device" if kind in ("runtime", "answers") and check["step"] == "device" else kind


def headline(checks: Iterable[JsonObject]) -> str:
    """The first sentences behind FAILED: the most severe fault, and what else is wrong."""
    first, *others = accused(checks) or ("unknown",)
    also = f" Also wrong: {', '.join(HEADLINES[kind][1] for kind in others)}." if others else ""
    return HEADLINES[first][0] + also
