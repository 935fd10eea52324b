"""What the apps' eyes see: records of the pictures that each app's path makes, and of the sizes that the program takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verifier.core.compare import agreement_interval
from verifier.core.types import Missing

Size = tuple[int, int]
"""Width and height in px."""


@dataclass(frozen=True)
class Seen:
    """A picture by the path of an app: its `size`, or the `refusal` of the path, in one line. SQNR of the image tokens against the reference's in dB,
    None where the pixels are `identical` or nothing was compared. `same` if the fp32 model keeps every token of its answer, None if it was not
    asked."""

    size: Size = (0, 0)
    refusal: str = ""
    identical: bool = False
    tokens_db: float | None = None
    same: bool | None = None


@dataclass(frozen=True)
class SizeTried:
    """What the program said to a picture of a size: nothing but image tokens, or an error."""

    size: Size
    error: str


@dataclass(frozen=True)
class AppEyes:
    """One app: what it makes of some pictures, by name, and the `sizes` that it feeds: those of usual shapes and of these pictures."""

    title: str
    pictures: dict[str, Seen]
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Score:
    """Of `asked` pictures, those that the program refuses or that cannot be fed (`aborts`), and those whose answer is another one or is not given at
    all (`lost`), with the 95 % interval of that share. Median SQNR in dB of the tokens that were compared, and how many pictures are `identical` to the
    reference's."""

    asked: int
    aborts: int
    lost: int
    interval: tuple[float, float]
    median_db: float | None
    identical: int

    @property
    def share(self) -> float:
        """Of answers that are lost; NaN of none."""
        return self.lost / self.asked if self.asked else float("nan")


@dataclass(frozen=True)
class EyesEvidence:
    """The `apps` by name, the sizes that the gate's own preparation feeds (`prepared`), and those that were `tried` on the program. `chosen` says of
    which pictures."""

    apps: dict[str, AppEyes]
    prepared: tuple[Size, ...]
    tried: tuple[SizeTried, ...] | Missing
    chosen: str

    def refused(self, sizes: tuple[Size, ...]) -> tuple[SizeTried, ...]:
        """Those of some sizes that the program does not take."""
        return () if isinstance(self.tried, Missing) else tuple(t for t in self.tried if t.error and t.size in sizes)

    def untried(self, sizes: tuple[Size, ...]) -> tuple[Size, ...]:
        """Those of some sizes that nobody tried."""
        tried = set() if isinstance(self.tried, Missing) else {one.size for one in self.tried}
        return tuple(size for size in sizes if size not in tried)

    def score(self, app: str) -> Score:
        """The figures of an app."""
        seen = list(self.apps[app].pictures.values())
        asked = [one for one in seen if one.same is not None or one.refusal]
        aborts = [one for one in asked if one.refusal or self.refused((one.size,))]
        lost = len(aborts) + sum(one.same is not True and one not in aborts for one in asked)
        interval = agreement_interval(lost, len(asked)) if asked else (0.0, 1.0)
        return Score(len(asked), len(aborts), lost, interval, _median(seen), sum(one.identical for one in seen))

    def scores(self) -> Iterator[tuple[str, AppEyes, Score]]:
        """Every app with its figures."""
        for name, eyes in self.apps.items():
            yield name, eyes, self.score(name)


def _median(seen: list[Seen]) -> float | None:
    values = sorted(one.tokens_db for one in seen if one.tokens_db is not None)
    return values[len(values) // 2] if values else None
