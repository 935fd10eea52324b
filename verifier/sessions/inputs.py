"""From recorded inputs to what our driver is fed: ids as ExecuTorch's runner makes them of text, and pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from verifier.artifact.program import Artifact
from verifier.core.errors import ImageError
from verifier.core.files import sha256_of_file
from verifier.core.limits import limit
from verifier.families.checkpoint import Checkpoint
from verifier.families.driver import Caller
from verifier.families.family import Family
from verifier.families.pixels.apps.app import Frame
from verifier.families.pixels.apps.registry import APPS, frame_of
from verifier.families.pixels.image_file import read_image
from verifier.families.pixels.processor import find_processor
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.runner.protocol import Array
from verifier.runner.tokenizer import Tokenizer as RunnerTokenizer
from verifier.runner.tokenizer import open_tokenizer as open_runner_tokenizer
from verifier.sessions.records import Fed, Settings

Segment = tuple[int, ...] | Array
"""Ids of a text, or a picture uint8 [3, h, w]."""
OWN = "the checkpoint's preparation as the gate verifies it"


@dataclass(frozen=True)
class Subject:
    """What a session is held against: the file, the checkpoint, and the tokenizer file of the app."""

    artifact: Artifact
    caller: Caller
    checkpoint: Checkpoint
    family: Family
    tokenizer: Tokenizer
    tokenizer_file: Path
    _made: dict[Path, dict[str, Array]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def by_runner(self) -> RunnerTokenizer:
        """The tokenizer file as ExecuTorch's runner reads it: every text begins anew."""
        return open_runner_tokenizer(self.tokenizer_file)

    @cached_property
    def tokenizer_sha256(self) -> str:
        """Of the tokenizer file."""
        return sha256_of_file(self.tokenizer_file)

    @cached_property
    def frame(self) -> Frame:
        """The model's square, for the apps' paths."""
        return frame_of(self.family.pixels.side_px, find_processor(self.checkpoint.directory))

    def prepared(self, picture: Path) -> Array:
        """A picture as the gate prepares it, uint8 [3, h, w]. Raises `ImageError`."""
        made = self._made.setdefault(picture, {})
        if OWN not in made:
            made[OWN] = self.family.pixels.prepare(read_image(picture), square=False).numpy()
        return made[OWN]

    def pixels(self, fed: Fed) -> Array:
        """The recorded pixels of a picture; those of the gate's preparation where none are."""
        if fed.pixels is not None:
            return fed.pixels
        assert fed.picture is not None
        return self.prepared(fed.picture)

    def paths(self, picture: Path) -> dict[str, Array]:
        """What every known path makes of a picture; those that cannot feed it are left out."""
        self.prepared(picture)
        made = self._made[picture]
        if len(made) == 1:
            for name, app in APPS.items():
                try:
                    made[f"{app.title} ({name})"] = app.picture(picture, self.frame)
                except ImageError:
                    continue
        return made

    def encoded(self, inputs: Sequence[Fed], settings: Settings, *, at_start: bool) -> tuple[Segment, ...]:
        """Segments of recorded inputs. BOS comes as often as it was asked for before the first text of a conversation; as the checkpoint has it if
        that was not recorded."""
        segments: list[Segment] = []
        usual = int(self.tokenizer.adds_bos)
        for number, one in enumerate(inputs):
            if one.is_picture:
                segments.append(self.pixels(one))
            elif one.ids is not None:
                segments.append(one.ids)
            else:
                assert one.text is not None
                bos = (
                    (self.by_runner.bos,) * (usual if settings.num_bos is None else settings.num_bos)
                    if at_start and number == 0
                    else ()
                )
                segments.append((*bos, *self.by_runner.encode(one.text.split("\0")[0])))
        return tuple(segment for segment in segments if len(segment))  # a text of nothing feeds nothing


def path_of(pixels: Array, paths: dict[str, Array]) -> str:
    """The path that made some pixels, to one step of 255, else to what decoders of JPEG differ by; "" if none of these did. The channels may be in
    the order BGR."""
    for is_same in (_same, _decoded_otherwise):
        for name, made in paths.items():
            if is_same(pixels, made):
                return name
        for name, made in paths.items():
            if is_same(pixels[::-1], made):
                return f"the order BGR, else {name}"
    return ""


def _decoded_otherwise(one: Array, other: Array) -> bool:
    """Whether both may be the same JPEG by another decoder: few steps nearly everywhere (docs/targets.md has what was measured)."""
    if one.shape != other.shape:
        return False
    steps = np.abs(one.astype(np.int16) - other.astype(np.int16))
    near = float((steps <= limit("session.decoder_steps").value).mean())
    return limit("session.decoder_mean").admits(float(steps.mean())) and limit("session.decoder_share").admits(near)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max()) <= 1


def with_text(inputs: Sequence[Fed], number: int, text: str) -> tuple[Fed, ...]:
    """Inputs with another text in place of one, and of its ids."""
    return tuple(replace(one, text=text, ids=None) if at == number else one for at, one in enumerate(inputs))
