"""What a file is, by its first bytes, in words for somebody who gave the wrong one; the C++ runner has the same."""

from __future__ import annotations

import re
import struct

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself (git lfs pull)"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive (PyTorch's files are such)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF model"),
    (b"\x7fELF", "an ELF program"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
)
_WINDOW = 4096


def describe(data: bytes) -> str:
    """What a file is, from its beginning; it may be cut anywhere."""
    if not data:
        return "an empty file"
    for beginning, kind in _BEGINNINGS:
        if data.startswith(beginning):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP picture"
    if re.fullmatch(rb"ET\d\d", data[4:8]):
        return "an ExecuTorch program (.pte)"
    if len(data) > 8 and data[8:9] == b"{" and struct.unpack_from("<Q", data)[0] < 1 << 32:
        return "a safetensors file"
    begun = data[:_WINDOW]
    if not any(begun):
        return "zero bytes"
    text = begun.lstrip(b" \t\r\n")
    if text[:9].lower() == b"<!doctype" or text[:5].lower() == b"<html":
        return "an HTML page (a download that wants a login gives one)"
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", begun):
        return "a tiktoken vocabulary, which is not supported"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in begun) and _is_utf8(begun):
        return "a text file"
    return "an unknown binary file"


def _is_utf8(begun: bytes) -> bool:
    """Whether these are characters, the last of them perhaps cut."""
    for cut in range(4):
        try:
            begun[: len(begun) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False
