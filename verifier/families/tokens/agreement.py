"""Two encoders have to agree before anything is encoded: a few hundred texts, at the start, behind an image and behind an answer.

The tokenizer that the verifier feeds with is Hugging Face's `tokenizers`. SentencePiece, or merges applied by hand, is asked the same; so is
transformers' `AutoTokenizer` where its ids are the reference. Where two part, nothing is verified: which of them the model was trained with
cannot be told from here.
"""

from __future__ import annotations

from collections.abc import Iterator

from verifier.core.errors import CheckpointError
from verifier.families.checkpoint import Checkpoint
from verifier.families.tokens.ending import end_ids
from verifier.families.tokens.records import Mark, Part
from verifier.families.tokens.reference_tokenizer import ReferenceTokenizer
from verifier.families.tokens.second_encoder import SecondEncoder
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.families.tokens.tokenizer_files import TokenizerFiles, read_files

_SCRIPTS = (
    "Describe the image.",
    "What is shown here, and why?",
    "naïve café, œuvre, Straße, ĳ, ŵ",
    "e\u0301 n\u0303 o\u0308 combined",
    "Что изображено на картинке?",
    "Τι δείχνει η εικόνα;",
    "ما هذا؟ صورة صغيرة",
    "מה יש בתמונה?",
    "चित्र में क्या है?",
    "ছবিতে কী আছে?",
    "இந்தப் படத்தில் என்ன?",
    "ภาพนี้คืออะไร",
    "これは何の写真ですか。",
    "这张图片里有什么？",
    "이 그림은 무엇입니까?",
    "ეს რა არის?",
    "Ի՞նչ է սա։",
    "ይህ ምንድን ነው?",
    "Hình này là gì? Tiếng Việt",
    "İstanbul'da ığdır",
    "ꦗꦮ ᚠᚢᚦ 𐌰𐌱𐌲 𒀀𒁀",
)
_EMOJI = ("🙂", "👩‍👩‍👧‍👦", "🇩🇪🇯🇵", "👍🏽", "☀️ and ☀", "a🙂b 🙂 c")
_DIGITS = ("0", "2024", "3.14159", "1,234,567", "12 34", "٣٤٥", "①②", "1e-6", "192.168.0.1", "²³½")
_BLANKS = (
    "",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    " \n ",
    "a  b",
    "a   b    c",
    "a\tb",
    "a ",
    "a\n",
    "a\r\nb",
    "\u00a0",
    "a\u3000b",
)
_CODE = (
    "x = {'a': [1, 2]}  # why",
    "def f(x):\n    return x",
    "https://example.org/a?b=c&d=%20",
    "<b>bold</b>",
    "a_b-c.d/e\\f",
    "!!! ??? ... --- ***",
    "“quotes” ‘single’ «guillemets» – — …",
    "$1.50 €2 £3 ¥4 100%",
    "C++ & C#",
)
_ODD = (
    "\u200b\u200d",
    "\ufeffbom",
    "\u2581",
    "a\u2581b",
    "\u2581\u2581",
    "\u0000",
    "\u001b[0m",
    "\ufffd",
    "ﬁ ﬂ",
    "A\u0300\u0301\u0302",
)
_WORDS = (
    "unquestionably",
    "antidisestablishmentarianism",
    "aaaaaaaaaaaaaaaa",
    "ThisIsCamelCase",
    "UPPER",
    "the the the",
)
TEXTS = (*_SCRIPTS, *_EMOJI, *_DIGITS, *_BLANKS, *_CODE, *_ODD, *_WORDS)
"""What a user may write."""
_LONGEST_SHOWN = 60


def conversations() -> Iterator[tuple[Part, ...]]:
    """Every text at the start, where an exporter's runner puts it behind an image, right behind the image, and behind an answer."""
    for text in TEXTS:
        # no prompt begins with a blank, where Metaspace and SentencePiece part by design
        yield (text if text[:1].strip(" \t\n\r\u2581") else f"A{text}",)
        yield ("USER: ", Mark.IMAGE, f"\n{text} ASSISTANT:")
        yield (Mark.IMAGE, text)
        yield ("What is it? ASSISTANT: A cat.", Mark.END, f"USER: {text} ASSISTANT:")


def compare_with_second(tokenizer: Tokenizer) -> int:
    """Ask the second encoder; how many texts were alike. Raises `CheckpointError` that names both encoders and the text."""
    count = 0
    for parts in conversations():
        actual, expected = tokenizer.encode_parts(parts, bos=False), tokenizer.second_ids(parts)
        if actual != expected:
            raise _parted(tokenizer, parts, actual, expected, tokenizer.second.name)
        count += 1
    return count


def compare_with_transformers(tokenizer: Tokenizer) -> int:
    """The same with transformers' own tokenizer, BOS included; texts that spell a special token are left out, being no text there."""
    count = 0
    for parts in conversations():
        if all(tokenizer.is_plain(part) for part in parts if isinstance(part, str)):
            actual, expected = tokenizer.encode_parts(parts), tokenizer.reference.encode(tokenizer.spelled(parts))
            if actual != expected:
                raise _parted(tokenizer, parts, actual, expected, tokenizer.reference.name)
            count += 1
    return count


def _compare_alone(files: TokenizerFiles) -> None:
    """tokenizer.model without tokenizer.json: what transformers makes of it against SentencePiece, on texts without special tokens."""
    second, reference = SecondEncoder(files), ReferenceTokenizer(files.folder)
    for text in TEXTS:
        if text[:1].strip(" \t\n\r\u2581"):
            one, two = reference.pieces(text), second.pieces(text)
            if one != two:
                raise CheckpointError(
                    f"tokenizer.model alone is read in two ways, for example {text!r}",
                    got=f"{' '.join(one[:6])} by {reference.name}, {' '.join(two[:6])} by {second.name}",
                    expected="tokenizer.json beside it, which also says what follows the image",
                    where=files.folder,
                    fix="copy tokenizer.json and tokenizer_config.json from the original checkpoint, or save them with the release of "
                    "transformers that the checkpoint was made with",
                )


def _parted(
    tokenizer: Tokenizer, parts: tuple[Part, ...], actual: list[int], expected: list[int], other: str
) -> CheckpointError:
    text = tokenizer.spelled(parts)
    shown = repr(text if len(text) <= _LONGEST_SHOWN else f"…{text[-_LONGEST_SHOWN:]}")
    pairs = enumerate(zip(actual, expected, strict=False))
    at = next((i for i, (a, e) in pairs if a != e), min(len(actual), len(expected)))
    one, two = (" ".join(map(tokenizer.piece, ids[at : at + 4])) or "the end" for ids in (actual, expected))
    return CheckpointError(
        f"two tokenizers make different ids of {shown}",
        got=f"token {at}: {one} by Hugging Face's tokenizers on {tokenizer.files.source}, {two} by {other}",
        expected="the same ids by both: which of them the model was trained with cannot be told from here",
        where=tokenizer.files.folder,
        fix="take tokenizer.json, tokenizer.model and tokenizer_config.json from the original checkpoint, all of one release",
    )


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """A checkpoint's tokenizer, agreed on by the second encoder, whose image token is that of config.json. Raises `CheckpointError`."""
    files = read_files(checkpoint.directory)
    if files.tokenizer is None:
        _compare_alone(files)
    tokenizer = Tokenizer(checkpoint.directory)
    wanted = checkpoint.geometry.image_token_id
    if tokenizer.image_id != wanted:
        raise CheckpointError(
            "tokenizer and config.json have different image tokens",
            got=f"{tokenizer.image_token} is {tokenizer.image_id} in {tokenizer.files.source}",
            expected=f"image_token_index {wanted}",
            where=checkpoint.directory,
            fix="take both files from the original checkpoint",
        )
    compare_with_second(tokenizer)
    tokenizer.ends = end_ids(checkpoint.directory, checkpoint.config, tokenizer_id=tokenizer.eos_id)
    return tokenizer
