"""Records of what was compared with the fp32 rungs; nothing here computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerError:
    """An activation of the definition against Hugging Face's: SQNR in dB and the index of the element with the largest error; or the `reason` why
    they cannot be compared, with the index of the first element that is not finite, if there is one."""

    name: str
    sqnr_db: float
    index: tuple[int, ...] | None
    reason: str = ""


@dataclass(frozen=True)
class VocabularyError:
    """The program's embedding of all `tokens` against the checkpoint's table: SQNR in dB, how many `rows_off`, and the element that exceeds what is
    allowed by most, or comes closest to it: `index` (token, column), `worst` and `allowed`, in quantization steps of `bits`, absolute for 32."""

    tokens: int
    bits: int
    sqnr_db: float
    rows_off: int
    worst: float
    allowed: float
    index: tuple[int, int]
