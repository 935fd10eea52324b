"""What a checkpoint's processor files say about pictures: `processor_config.json`, `preprocessor_config.json`, or both.

transformers 5 writes one file, with the image processor's fields inside `image_processor`. transformers 4, and the published 7B, have two:
the image processor's fields in `preprocessor_config.json`, the tokens of an image in `processor_config.json`. Where both files hold
image fields, transformers takes the former; older programs read the latter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verifier.core.errors import CheckpointError, VerifierError
from verifier.core.records import JsonObject
from verifier.core.types import Missing
from verifier.families.checkpoint import read_json

Framing = Literal["pad", "crop", "squash", "other"]
NESTED, PLAIN = "processor_config.json", "preprocessor_config.json"
_LIMIT_BYTES, _TOKENIZER_LIMIT_BYTES = 1 << 20, 64 << 20
DEFAULTS: JsonObject = {
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_pad": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""What transformers 5.23 takes for a field that is missing: the attributes of `CLIPImageProcessor` and `LlavaImageProcessor`."""
KINDS = {
    f"{name}{ending}": name for name in ("CLIPImageProcessor", "LlavaImageProcessor") for ending in ("", "Fast", "Pil")
} | {"CLIPFeatureExtractor": "CLIPImageProcessor"}
"""The image processors that are understood, by the names that files have for them."""


@dataclass(frozen=True)
class ImageFields:
    """The image processor's fields in one file, those that are null left out."""

    file: str
    fields: JsonObject

    def value(self, field: str) -> Any:
        """The field as transformers takes it: the file's, or the default."""
        return self.fields.get(field, DEFAULTS.get(field))

    @property
    def kind(self) -> str | None:
        """The class of the image processor, None for one that is not understood. A file that names none is read by the model's own."""
        named = self.fields.get("image_processor_type", self.fields.get("feature_extractor_type"))
        return "LlavaImageProcessor" if named is None else KINDS.get(str(named))

    @property
    def framing(self) -> Framing:
        """How a picture that is not square becomes one. Only LLaVA's own processor pads it; CLIP's knows no such field."""
        size = self.edges("size")
        if self.value("do_pad") is True and self.kind == "LlavaImageProcessor":
            return "pad"
        if set(size) == {"shortest_edge"} and self.value("do_center_crop") is True:
            return "crop"
        return "squash" if set(size) == {"height", "width"} else "other"

    def edges(self, field: str) -> JsonObject:
        """`size` or `crop_size` as a record of edges; a bare number is what transformers makes of it."""
        square = field == "crop_size" or self.value("default_to_square") is True
        return _edges(self.value(field), square=square)


@dataclass(frozen=True)
class Processor:
    """The image fields, first those that transformers reads, and the fields that count an image's tokens. `added_ids` are the ids of the tokens that
    tokenizer.json adds, None without such a file."""

    sources: tuple[ImageFields, ...]
    tokens: ImageFields
    added_ids: dict[str, int] | Missing | None = None

    @property
    def image(self) -> ImageFields:
        """What transformers reads."""
        return self.sources[0]


def _edges(value: Any, *, square: bool) -> JsonObject:
    if isinstance(value, dict):
        return {str(edge): length for edge, length in value.items() if length is not None}
    if isinstance(value, list) and len(value) == 2:
        return {"height": value[0], "width": value[1]}
    return {"height": value, "width": value} if square else {"shortest_edge": value}


def read_processor(directory: Path) -> Processor:
    """The processor of a checkpoint. Raises `CheckpointError` if there is none, or one that cannot be read."""
    found = {
        name: read_json(directory / name, limit_bytes=_LIMIT_BYTES)
        for name in (NESTED, PLAIN)
        if (directory / name).is_file()
    }
    outer = found.get(NESTED, {})
    nested = outer.get("image_processor")
    if nested is not None and not isinstance(nested, dict):
        raise CheckpointError(
            "image_processor is not an object", got=type(nested).__name__, where=directory / NESTED, fix="save it again"
        )
    sources = [ImageFields(NESTED, _present(nested))] if nested is not None else []
    sources += [ImageFields(PLAIN, _present(found[PLAIN]))] if PLAIN in found else []
    if not sources:
        raise CheckpointError(
            "the checkpoint has no image processor to compare with",
            expected=f"{PLAIN}, or {NESTED} with image_processor",
            where=directory,
            fix="download the file, or save it with the processor's save_pretrained",
        )
    tokens = {field: value for field, value in _present(outer).items() if field != "image_processor"}
    return Processor(tuple(sources), ImageFields(NESTED, tokens), _added_ids(directory / "tokenizer.json"))


def find_processor(directory: Path) -> Processor | Missing:
    """As `read_processor`, or why there is none to compare with."""
    try:
        return read_processor(directory)
    except VerifierError as error:
        return Missing(f"the processor cannot be compared: {error.one_line}", "verifier")


def _added_ids(path: Path) -> dict[str, int] | Missing | None:
    if not path.is_file():
        return None
    try:
        added = read_json(path, limit_bytes=_TOKENIZER_LIMIT_BYTES).get("added_tokens") or []
        ids = {entry["content"]: entry["id"] for entry in added}
    except (VerifierError, TypeError, KeyError) as error:
        return Missing(f"tokenizer.json cannot be read: {error}", "verifier")
    return {token: id for token, id in ids.items() if isinstance(token, str) and isinstance(id, int)}


def _present(fields: JsonObject) -> JsonObject:
    return {str(field): value for field, value in fields.items() if value is not None}
