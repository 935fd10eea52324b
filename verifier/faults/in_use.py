"""Faults in the use of a sound program: driver, prompt, positions, preprocessing, stale state."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verifier.core.errors import CheckpointError
from verifier.core.types import Prompt
from verifier.families import driver, prompts
from verifier.families.llava import preprocess
from verifier.families.llava.prompt import PROMPT
from verifier.families.pixels import image_file
from verifier.families.tokens.records import Mark, Part
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.fault import NOT_VERIFIED, Fault, Work, fault
from verifier.faults.tokenizer_forms import as_transformers_4
from verifier.runner.protocol import OutputOf

PIXELS, TOKENS = "preprocess.*", "splice.*"


def _everywhere(owner: Any, name: str, value: Any) -> None:
    """Let a function of the verifier be another one, wherever it was imported by its name."""
    right = getattr(owner, name)
    for module in [m for key, m in sys.modules.items() if key.startswith(("verifier.", "golden."))]:
        if getattr(module, name, None) is right:
            setattr(module, name, value)


def _prompts(change: Callable[[Tokenizer, Prompt], Prompt]) -> None:
    right = prompts.caption_prompt

    def changed(tokenizer: Tokenizer, form: prompts.PromptFormat, question: str) -> Prompt:
        return change(tokenizer, right(tokenizer, form, question))

    _everywhere(prompts, "caption_prompt", changed)


def _images(prepare: Callable[..., Tensor]) -> None:
    _everywhere(preprocess, "prepare_image", prepare)


def _framed(image: Image.Image, side_px: int, *, up: int = 0, colour: tuple[int, int, int] = (0, 0, 0)) -> Tensor:
    """The picture on a square of a colour, `up` pixels too high where there is room."""
    size = preprocess.frame_size(image.width, image.height, side_px=side_px)
    inner = preprocess.to_tensor(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    top, left = (side_px - inner.shape[1]) // 2, (side_px - inner.shape[2]) // 2
    frame = torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).repeat(1, side_px, side_px)
    top = max(0, top - up)
    frame[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return frame


@fault("use", "bilinear where bicubic is due", rows=(5,), step="mapping", place="margin|pixels", quick=PIXELS)
def bilinear(work: Work) -> None:
    """Textures only."""

    def prepare(image: Image.Image, *, side_px: int = 336, square: bool = False) -> Tensor:
        size = preprocess.frame_size(image.width, image.height, side_px=side_px)
        return preprocess.to_tensor(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))

    _images(prepare)


@fault("use", "nearest neighbour where bicubic is due", rows=(5,), step="mapping", place="pixels", quick=PIXELS)
def nearest(work: Work) -> None:
    """As a texture lookup of an app resizes."""

    def prepare(image: Image.Image, *, side_px: int = 336, square: bool = False) -> Tensor:
        size = preprocess.frame_size(image.width, image.height, side_px=side_px)
        return preprocess.to_tensor(image.convert("RGB").resize(size, Image.Resampling.NEAREST))

    _images(prepare)


@fault("use", "the rotation tag of photos ignored", rows=(63,), step="mapping", place="orientation", quick=PIXELS)
def orientation_ignored(work: Work) -> None:
    """What the camera stored, not what a person sees."""
    _everywhere(image_file, "upright", lambda image: image)


@fault("use", "the processor's file says another filter", rows=(66,), step="mapping", place="resample", quick=PIXELS)
def processor_field(work: Work) -> None:
    """The runners resize as the file said when they were written."""
    path = work.own_model() / "processor_config.json"
    config = json.loads(path.read_text())
    config["image_processor"]["resample"] = 2
    path.write_text(json.dumps(config))


@fault("use", "margins in the mean colour where black is due", rows=(6,), step="mapping", place="margin|pixels")
def another_fill(work: Work) -> None:
    """Images that are not square."""
    _images(lambda image, *, side_px=336, square=False: _framed(image, side_px, colour=(122, 116, 104)))


@fault("use", "the picture one pixel too high in its frame", rows=(7,), step="mapping", place="margin|pixels")
def margin_loses_a_pixel(work: Work) -> None:
    """Where there is a margin above it."""
    _images(lambda image, *, side_px=336, square=False: _framed(image, side_px, up=1))


@fault("use", "pixels in the order BGR", step="mapping", place="channel order")
def bgr(work: Work) -> None:
    """As OpenCV reads them."""
    right = preprocess.to_tensor
    _everywhere(preprocess, "to_tensor", lambda image: right(image).flip(0))


def _prefill(change: Callable[..., tuple[int, int, int]]) -> None:
    right = driver.prefill
    _everywhere(driver, "prefill", lambda *given, **named: change(right, *given, **named))


@fault("use", "575 slots for 576 image tokens", rows=(17,), step="mapping", place="position", quick=TOKENS)
def slots_575(work: Work) -> None:
    """The text behind the image starts one position early."""
    _prefill(lambda right, *given, patches, **named: right(*given, patches=patches - 1, **named))


@fault("use", "the image one token early in the prompt", rows=(18,), step="mapping", place="covers")
def image_one_early(work: Work) -> None:
    """The last token before it follows it."""
    right = driver.splice

    def shifted(script: Any, segments: Any, *given: Any, **named: Any) -> Any:
        if len(segments) == 3 and segments[1] is None:
            before, image, after = segments
            segments = (before[:-1], image, (before[-1], *after))
        return right(script, segments, *given, **named)

    _everywhere(driver, "splice", shifted)


@fault("use", "BOS omitted", rows=(19,), step="mapping", place="BOS", quick=TOKENS)
def no_bos(work: Work) -> None:
    """No BOS at all."""
    _prompts(lambda _tokenizer, given: replace(given, before=given.before[1:]))


@fault("use", "BOS again behind the image", rows=(20,), step="mapping", place="BOS")
def second_bos(work: Work) -> None:
    """BOS per segment."""
    _prompts(lambda tokenizer, given: replace(given, after=(tokenizer.bos_id, *given.after)))


@fault("use", "the prompt goes in twice", rows=(21,), step="mapping", place="position")
def prefilled_twice(work: Work) -> None:
    """Position 0 again."""

    def twice(right: Any, *given: Any, **named: Any) -> tuple[int, int, int]:
        right(*given, **named)
        made: tuple[int, int, int] = right(*given, **named)
        return made

    _prefill(twice)


@fault("use", "a stray blank in the template", rows=(22,), step="mapping", place="template")
def stray_blank(work: Work) -> None:
    """Two before ASSISTANT."""
    _prompts(
        lambda tokenizer, given: replace(
            given, after=tuple(tokenizer.encode_behind("\nDescribe the image.  ASSISTANT:"))
        )
    )


class _InStretches(Tokenizer):
    """Encodes the text between special tokens by itself: with a blank in front, as SentencePiece does, or without one."""

    blank = True

    def encode_parts(self, parts: Iterable[Part], *, bos: bool = True) -> list[int]:
        """Whatever the checkpoint's tokenizer puts behind a special token."""
        ids = super().encode_parts([], bos=bos)
        for number, (mark, stretch) in enumerate(groupby(parts, lambda part: part if isinstance(part, Mark) else None)):
            if mark is not None:
                ids += [self.image_id if mark is Mark.IMAGE else self.eos_id for _ in stretch]
            elif self.blank or number == 0:
                ids += super().encode_parts(stretch, bos=False)
            else:
                newline = super().encode_parts(["\n"], bos=False)
                ids += super().encode_parts(["\n", *stretch], bos=False)[len(newline) :]
        return ids


def encoded_in_stretches(right: Callable[..., Any], *, blank: bool) -> Callable[..., Any]:
    """A function of a tokenizer, given one that encodes so."""

    def encoded(tokenizer: Tokenizer, *given: Any) -> Any:
        other = copy.copy(tokenizer)
        other.__class__ = type("_Other", (_InStretches,), {"blank": blank})
        return right(other, *given)

    return encoded


def in_stretches(*, blank: bool) -> None:
    """Let all prompts be encoded so. The tokenizer itself stays right: it is looked at when the checkpoint is opened."""
    for name in ("caption_prompt", "dialogue_segments"):
        _everywhere(prompts, name, encoded_in_stretches(getattr(prompts, name), blank=blank))


@fault(
    "use",
    "a blank behind the image where the tokenizer has none",
    rows=(22, 61),
    step="mapping",
    place="template|token",
)
def leading_blank(work: Work) -> None:
    """What SentencePiece does with every text of its own."""
    in_stretches(blank=True)


@fault(
    "use",
    "no blank behind the image where the tokenizer has one",
    rows=(22, 61),
    step="mapping",
    place="template|token",
)
def missing_blank(work: Work) -> None:
    """What a runner does that was tried with the other form of the same tokenizer."""
    as_transformers_4(work.own_model())
    in_stretches(blank=False)


@fault("use", "the first request's image for all", rows=(24,), step="mapping", place="earlier request|image")
def image_of_the_first_request(work: Work) -> None:
    """Its tokens are kept."""
    right = driver.splice

    def cached(script: Any, *given: Any, **named: Any) -> Any:
        made = right(script, *given, **named)
        for number, call in enumerate(script.calls):
            if call.inputs and isinstance(call.inputs[0], OutputOf) and call.inputs[0].call in made.vision:
                script.calls[number] = replace(call, inputs=(OutputOf(0), *call.inputs[1:]))
        return made

    _everywhere(driver, "splice", cached)


@fault("use", "the second conversation goes on where the first one ended", rows=(40,), step="mapping", place="position")
def cache_kept(work: Work) -> None:
    """No reload between prompts: positions go on from 9."""
    right, begun = driver.position_array, [0]

    def kept(position: int) -> Any:
        begun[0] += position == 0
        return right(position + 9 * (begun[0] > 1))

    _everywhere(driver, "position_array", kept)


@fault("use", "positions begin at 1", step="mapping", place="position")
def positions_from_1(work: Work) -> None:
    """Logits hardly move, RoPE being relative."""
    right = driver.position_array
    _everywhere(driver, "position_array", lambda position: right(position + 1))


def _steps(advance: int) -> None:
    right, length = driver._step, [0]
    prefill = driver.prefill

    def prefilled(*given: Any, **named: Any) -> tuple[int, int, int]:
        made = prefill(*given, **named)
        length[0] = made[2]
        return made

    def step(script: Any, ids: Any, position: int) -> int:
        return right(script, ids, min(767, length[0] + (position - length[0]) * advance))

    _everywhere(driver, "prefill", prefilled)
    _everywhere(driver, "_step", step)


@fault("use", "the position stays while decoding", rows=(52,), step="mapping", place="position")
def position_stays(work: Work) -> None:
    """Every answer token overwrites the one before."""
    _steps(0)


@fault("use", "the position moves by two while decoding", rows=(52,), step="mapping", place="position")
def position_twice(work: Work) -> None:
    """Every other row of the cache is empty."""
    _steps(2)


@fault(
    "use", "temperature 0.8, the default of many runners", rows=(56,), step="mapping", place="temperature", slow=True
)
def sampled(work: Work) -> None:
    """The token that is fed back is drawn, not favoured."""
    rng = np.random.default_rng(0)
    vocabulary = work.checkpoint.geometry.text.vocabulary
    _everywhere(driver, "favoured", lambda _logits: driver.ids_array([int(rng.integers(3, vocabulary))]))


@fault(
    "use",
    "two pieces of the tokenizer have changed ids",
    step="mapping",
    place="two tokenizers make different ids",
    status=NOT_VERIFIED,
    quick=TOKENS,
)
def two_token_ids(work: Work) -> None:
    """In the model that runners read; Hugging Face's file has them as they were, and nobody can tell which is right."""
    from sentencepiece import sentencepiece_model_pb2

    path = work.own_model() / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    used = Tokenizer(path.parent).encode(PROMPT.before_image)
    first, second = sorted(set(used))[-2:]
    if first == second:
        raise CheckpointError("the prompt has too few tokens", got=used)
    pieces = model.pieces
    pieces[first].piece, pieces[second].piece = pieces[second].piece, pieces[first].piece
    pieces[first].score, pieces[second].score = pieces[second].score, pieces[first].score
    path.write_bytes(model.SerializeToString())


FAULTS: tuple[Fault, ...] = (
    bilinear,
    nearest,
    orientation_ignored,
    processor_field,
    another_fill,
    margin_loses_a_pixel,
    bgr,
    slots_575,
    image_one_early,
    no_bos,
    second_bos,
    prefilled_twice,
    stray_blank,
    leading_blank,
    missing_blank,
    image_of_the_first_request,
    cache_kept,
    positions_from_1,
    position_stays,
    position_twice,
    sampled,
    two_token_ids,
)
