"""The frame of a `.pte`: magic, program flatbuffer, segments. Checked before anything is parsed.

Layout (executorch/schema/extended_header.cpp): bytes 4-8 `ET12`, 8-12 `eh00`, then header length u32, program size u64,
segment base offset u64 and, in newer files, segment data size u64; little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from verifier.core.errors import ArtifactError
from verifier.core.files import refuse_stand_in

PROGRAM_LIMIT_BYTES = 256 << 20
_FIX = "export the program again, or copy it again: compare SHA-256 with the one in the manifest"


@dataclass(frozen=True)
class Header:
    """Sizes and offsets in bytes; segments begin at `segment_base`."""

    file_bytes: int
    program_bytes: int
    segment_base: int
    segment_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the frame. Raises `ArtifactError` for anything that is not a whole `.pte`."""
    if not path.exists():
        raise ArtifactError(
            "no such file",
            got=path,
            expected="an ExecuTorch program (.pte)",
            fix="check the path; export one with python -m verifier.export_llava",
        )
    if not path.is_file():
        raise ArtifactError(
            "not a file",
            got=f"{path} is a folder" if path.is_dir() else path,
            expected="an ExecuTorch program (.pte)",
            fix="give the .pte itself",
        )
    file_bytes = path.stat().st_size
    if file_bytes == 0:
        raise ArtifactError(
            "the file is empty", got="0 bytes", expected="an ExecuTorch program (.pte)", where=path, fix=_FIX
        )
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ArtifactError("the file cannot be read", got=error, where=path, fix="check its permissions") from error
    if len(head) < 40 or head[4:6] != b"ET":
        refuse_stand_in(path, ArtifactError)
        raise ArtifactError(
            "not an ExecuTorch program",
            got=f"{head[:12]!r}",
            expected="file identifier ET12 at byte 4",
            where=path,
            fix=_FIX,
        )
    if head[8:12] != b"eh00":
        return Header(file_bytes, file_bytes, file_bytes, 0)
    length, program_bytes, segment_base = struct.unpack_from("<IQQ", head, 12)
    segment_bytes = struct.unpack_from("<Q", head, 32)[0] if length >= 32 else max(0, file_bytes - segment_base)
    header = Header(file_bytes, program_bytes, segment_base, segment_bytes)
    _check(header, path)
    return header


def _check(header: Header, path: Path) -> None:
    if not 40 <= header.program_bytes <= min(PROGRAM_LIMIT_BYTES, header.file_bytes):
        raise _truncated("the program", header.program_bytes, header, path)
    if header.segment_base and header.segment_base < header.program_bytes:
        raise ArtifactError(
            "the segments overlap the program",
            got=header.segment_base,
            expected=f">= {header.program_bytes}",
            where=path,
            fix=_FIX,
        )
    end = header.segment_base + header.segment_bytes
    if header.segment_base and end > header.file_bytes:
        raise _truncated("the constants", end, header, path)


def _truncated(what: str, wanted: int, header: Header, path: Path) -> ArtifactError:
    return ArtifactError(
        "the file is truncated or its header is damaged",
        got=f"{header.file_bytes} bytes",
        expected=f"at least {wanted} bytes: {what} should end there",
        where=path,
        fix=_FIX,
    )
