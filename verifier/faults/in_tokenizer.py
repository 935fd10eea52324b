"""Faults of the tokenizer file that ships beside a sound program."""

from __future__ import annotations

from pathlib import Path

from verifier.faults.fault import Fault, Work, fault
from verifier.faults.tokenizer_forms import read_bin, write_bin

FILES = "tokenizer.*"


def _shipped(work: Work) -> tuple[Path, bytes, list[bytes]]:
    """The exporter's tokenizer.bin beside the program, its head and its pieces."""
    path = write_bin(work.model / "tokenizer.model", work.pte.with_name("tokenizer.bin"))
    return path, *read_bin(path)


@fault(
    "use",
    "two pieces of the tokenizer.bin that ships are swapped",
    rows=(77,),
    step="mapping",
    place="token",
    quick=FILES,
)
def swapped_in_shipped_tokenizer(work: Work) -> None:
    """The last two pieces: few texts have them."""
    path, head, pieces = _shipped(work)
    pieces[-2:] = reversed(pieces[-2:])
    path.write_bytes(head + b"".join(pieces))


@fault("use", "the tokenizer.bin that ships lost its last pieces", rows=(77,), step="mapping", place="ends after")
def shipped_tokenizer_cut(work: Work) -> None:
    """ExecuTorch fills it up with <pad>, in silence."""
    path, head, pieces = _shipped(work)
    path.write_bytes(head + b"".join(pieces[:-40]))


@fault("use", "a tokenizer.json ships that ExecuTorch cannot load", rows=(77,), step="mapping", place="Metaspace")
def shipped_tokenizer_of_metaspace(work: Work) -> None:
    """As transformers 5 writes it."""
    work.arguments += ["--tokenizer", str(work.model / "tokenizer.json")]


FAULTS: tuple[Fault, ...] = (swapped_in_shipped_tokenizer, shipped_tokenizer_cut, shipped_tokenizer_of_metaspace)
