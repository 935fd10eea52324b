"""`tokenizer.json` of Hugging Face, as far as Llama's tokenizers use it; the C++ runner has the same.

Supported: a BPE model with vocabulary and merges, `byte_fallback`, `ignore_merges`; the normalizers Prepend and Replace (of strings); the
pre-tokenizer Metaspace. Everything else is refused by name.
"""

from __future__ import annotations

import json
from typing import Any

from verifier.runner.constants import ID_LIMIT, PIECE_LIMIT_BYTES, VOCABULARY_LIMIT
from verifier.runner.vocabulary import BLANK, NotThisError, Spelling, Vocabulary, byte_of, said

_BOS = ("<s>", "<bos>", "<|begin_of_text|>")
_EOS = ("</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>")
"""Names of special tokens, for what the file does not say. A program that has `get_eos_ids` is asked first."""


def parse_json(data: bytes) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`. Raises `NotThisError`."""
    try:
        root = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotThisError("JSON that cannot be parsed, cut off or damaged") from error
    if not isinstance(root, dict) or not isinstance(root.get("model"), dict):
        raise NotThisError(_other_json(root))
    try:
        return _vocabulary(root, root["model"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise NotThisError(f"a damaged tokenizer.json: {type(error).__name__} {error}") from error


def _other_json(root: object) -> str:
    """What a JSON file is that is no tokenizer.json."""
    if not isinstance(root, dict):
        return "JSON, but no tokenizer.json"
    for keys, kind in (
        (("tokenizer_class",), "a tokenizer_config.json"),
        (("model_type",), "a config.json"),
        (("image_processor",), "a processor_config.json"),
        (("image_mean",), "a preprocessor_config.json"),
        (("config", "vocab", "special_tokens"), "a tekken.json, which is not supported"),
        (("weight_map",), "an index of weights"),
        (("bos_token",), "a special_tokens_map.json"),
        (("eos_token_id",), "a generation_config.json"),
    ):
        if all(key in root for key in keys):
            return kind
    if root and all(isinstance(value, int) for value in root.values()):
        return "a vocab.json, without merges"
    return "JSON, but no tokenizer.json: it has no model"


def _vocabulary(root: dict[str, Any], model: dict[str, Any]) -> Vocabulary:
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise NotThisError(f"a tokenizer.json with a {kind or 'nameless'} model: BPE is supported")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise NotThisError(f"a tokenizer.json with {name}, which is not supported")
    if len(model["vocab"]) > VOCABULARY_LIMIT or len(model["merges"]) > VOCABULARY_LIMIT:
        raise NotThisError(f"a tokenizer.json of more than {VOCABULARY_LIMIT} pieces or merges")
    ids = {piece.encode(): _id(number) for piece, number in model["vocab"].items()}
    if max(map(len, ids), default=0) > PIECE_LIMIT_BYTES:
        raise NotThisError(f"a tokenizer.json with a piece of more than {PIECE_LIMIT_BYTES} bytes")
    ranks = _merges(ids, model["merges"])
    spelling = _spelling(root.get("normalizer"), root.get("pre_tokenizer"))
    spoken = {number: said(piece, spelling.blank) for piece, number in ids.items()}
    added = _added(root, spelling, spoken)
    unknown = ids[model["unk_token"].encode()] if model.get("unk_token") is not None else None
    bytes_ids = {byte: ids[b"<0x%02X>" % byte] for byte in range(256) if b"<0x%02X>" % byte in ids}
    named = {token["content"]: token["id"] for token in root.get("added_tokens") or () if token.get("special")}
    bos = _template_bos(root.get("post_processor"))
    if bos is None:
        bos = next((named[name] for name in _BOS if name in named), None)
    if bos is None:
        raise NotThisError("a tokenizer.json that names no BOS, neither in its post-processor nor as an added token")
    return Vocabulary(
        ids,
        spoken,
        lambda left, right: ranks.get((left, right)),
        spelling,
        _id(bos),
        tuple(_id(named[name]) for name in _EOS if name in named),
        bytes_ids if model.get("byte_fallback") else {},
        unknown,
        bool(model.get("fuse_unk")),
        bool(model.get("ignore_merges")),
        added=added,
    )


def _id(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < ID_LIMIT:
        raise NotThisError(f"a damaged tokenizer.json: the id {str(number)[:40]}")
    return number


def _merges(ids: dict[bytes, int], merges: Any) -> dict[tuple[bytes, bytes], float]:
    ranks: dict[tuple[bytes, bytes], float] = {}
    for rank, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise NotThisError("a damaged tokenizer.json: a merge is not two pieces")
        left, right = (part.encode() for part in parts)
        if left not in ids or right not in ids or left + right not in ids:
            raise NotThisError(f"a damaged tokenizer.json: merge {rank} has pieces that are not in its vocabulary")
        if byte_of(left) is not None or byte_of(right) is not None:
            raise NotThisError(f"a tokenizer.json that merges byte pieces (merge {rank}), which is not supported")
        ranks[left, right] = rank  # of equal ones the last counts, as in Hugging Face's reader
    return ranks


def _spelling(normalizer: Any, pre_tokenizer: Any) -> Spelling:
    steps: list[tuple[bytes, bytes]] = []
    _normalizer_steps(normalizer, steps)
    if pre_tokenizer is None:
        return Spelling(BLANK, tuple(steps))
    if pre_tokenizer["type"] == "Sequence" and len(pre_tokenizer["pretokenizers"]) == 1:
        pre_tokenizer = pre_tokenizer["pretokenizers"][0]
    if pre_tokenizer["type"] != "Metaspace":
        raise NotThisError(f"a tokenizer.json with the pre-tokenizer {pre_tokenizer['type']}, which is not supported")
    # before `prepend_scheme` there was a switch, `add_prefix_space`
    scheme = pre_tokenizer.get("prepend_scheme", "always" if pre_tokenizer.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise NotThisError(f"a tokenizer.json with the prepend_scheme {str(scheme)[:40]}, which is not known")
    blank = pre_tokenizer.get("replacement", BLANK.decode()).encode()
    if len(blank.decode()) != 1:
        raise NotThisError("a damaged tokenizer.json: Metaspace's replacement is not one character")
    return Spelling(blank, tuple(steps), scheme, bool(pre_tokenizer.get("split", True)))


def _normalizer_steps(data: Any, steps: list[tuple[bytes, bytes]]) -> None:
    if data is None:
        return
    kind = data["type"]
    if kind == "Sequence":
        for one in data["normalizers"]:
            if one["type"] == "Sequence":
                raise NotThisError("a tokenizer.json with nested normalizers, which are not supported")
            _normalizer_steps(one, steps)
    elif kind == "Prepend":
        steps.append((b"", data["prepend"].encode()))
    elif kind == "Replace" and data["pattern"].get("String"):
        steps.append((data["pattern"]["String"].encode(), data["content"].encode()))
    else:
        raise NotThisError(f"a tokenizer.json with the normalizer {kind}, which is not supported")


def _added(root: dict[str, Any], spelling: Spelling, spoken: dict[int, bytes]) -> tuple[tuple[bytes, int], ...]:
    """Added tokens that are no special ones; they say what they are, special ones say nothing."""
    tokens: list[tuple[bytes, int]] = []
    for token in root.get("added_tokens") or ():
        content, number = token["content"].encode(), _id(token["id"])
        if token.get("special"):
            spoken[number] = b""
            continue
        flags = [name for name in ("lstrip", "rstrip", "single_word") if token.get(name)]
        flags += ["normalized"] if token.get("normalized") and spelling.steps else []
        if flags or not content or len(tokens) == 4096:
            named = f"{token['content'][:40]!r} ({', '.join(flags) or 'empty, or one of too many'})"
            raise NotThisError(f"a tokenizer.json with the added token {named}, which is not supported")
        spoken[number] = content
        tokens.append((content, number))
    return tuple(sorted(tokens, key=lambda one: (-len(one[0]), one[0])))


def _template_bos(data: Any) -> int | None:
    """The one token that the post-processor puts before a text, None if there is none."""
    if data is None:
        return None
    if data["type"] == "Sequence":
        return next(
            (
                bos
                for one in data["processors"]
                if one["type"] == "TemplateProcessing" and (bos := _template_bos(one)) is not None
            ),
            None,
        )
    if data["type"] != "TemplateProcessing":
        return None
    before: list[int] = []
    for item in data["single"]:
        if "SpecialToken" not in item:
            return before[0] if len(before) == 1 else None
        before += data["special_tokens"][item["SpecialToken"]["id"]]["ids"]
    return None
