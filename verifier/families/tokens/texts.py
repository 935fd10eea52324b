"""Five hundred texts for which a tokenizer has to be right, made by code: the same ones everywhere.

They have many scripts, emoji, digits, blanks, line breaks, U+2581 (the sign that stands for a blank inside of vocabularies), the spellings of
special tokens, lengths from nothing to a prompt that fills the cache. None has U+0000: no app can hand it to a C++ tokenizer, whose strings
end there (ExecuTorch's `Llama2cTokenizer` 1.5.0 crashes on a text that begins with it).
"""

from __future__ import annotations

import random

COUNT = 500
_LONG_CHARACTERS = 750
"""Some 250 to 2000 tokens. Llama2cTokenizer takes quadratic time."""
_SENTENCES = (
    "Describe the image.",
    "What is the man in the photo holding? Answer in one word.",
    "How many chairs are there, and of which colour?",
    "Was ist auf dem Bild zu sehen? Größe, Übung, straße",
    "Qu'est-ce que c'est ? L'œuvre est à gauche, là-bas.",
    "¿Qué hay en la imagen? Mañana, pingüino, ¡sí!",
    "Что изображено на картинке? Ещё раз.",
    "Τι δείχνει η εικόνα; Ναι.",
    "ما هذا؟ صورة صغيرة",
    "מה יש בתמונה?",
    "चित्र में क्या है?",
    "এই ছবিতে কী আছে?",
    "இந்தப் படத்தில் என்ன உள்ளது?",
    "ภาพนี้คืออะไร",
    "これは何の写真ですか。",
    "这张图片里有什么？請描述。",
    "이 그림은 무엇입니까?",
    "ეს რა არის?",
    "Ի՞նչ է սա",
    "ይህ ምንድን ነው?",
    "Hình này là gì? Tiếng Việt",
    "İstanbul'da ığdır, ğ ş ç",
    "𐌰𐌱𐌲 𒀀𒁀 ᚠᚢᚦ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "x = {'a': [1, 2]}  # why\n\treturn x",
    "https://example.org/a?b=c&d=%20#e",
    "“quotes” ‘single’ «guillemets» – — … • ·",
    "naïve café: e\u0301 n\u0303 o\u0308 A\u0300\u0301",
)
_SHORT = (
    *(
        "",
        "a",
        "A",
        ".",
        "?",
        "1",
        "\n",
        "\t",
        "é",
        "日",
        "🙂",
        "\u2581",
        "\u00a0",
        "\u3000",
        "\u200d",
        "\ufeff",
        "\ufffd",
        "\r\n",
    ),
    *("0", "2024", "3.14159", "1,234,567", "12 34", "٣٤٥", "①②", "²³½", "1e-6", "192.168.0.1", "00000000", "9" * 40),
    *("🙂🙂", "👩\u200d👩\u200d👧", "🇩🇪🇯🇵", "👍🏽", "☀️", "a🙂b", "🙂 🙂", "\U0001f9ff\U00020000\U0010fffd"),
    *("\u2581a", "a\u2581b", "\u2581\u2581", "a \u2581 b", "\u2581 a", "a\u2581"),
    *(
        " ",
        "  ",
        "   ",
        "    ",
        " a",
        "  a",
        "a ",
        "a  ",
        "a  b",
        "a   b    c",
        "\n\n",
        "\n\n\n",
        " \n ",
        "\n a",
        "a\n",
        "\ta\tb",
        "a\r\nb",
    ),
    *(
        "ASSISTANT:",
        "USER: ",
        "\nDescribe the image. ASSISTANT:",
        "\n ASSISTANT:",
        "ASSISTANT: ",
        "###",
        "[INST]",
        "<|im_start|>",
    ),
    *(
        "aaaaaaaaaaaaaaaa",
        "antidisestablishmentarianism",
        "ThisIsCamelCase",
        "UPPER lower",
        "the the the",
        "!!! ??? ...",
        "a_b-c.d/e\\f",
    ),
)
SPECIAL = ("<s>", "</s>", "<unk>", "<image>", "<pad>", "<0x0A>", "<s", "</", "<image")
"""Spellings of special tokens, whole and in part."""
_GLUE = ("", " ", "  ", "\n", ", ", ". ", "\t")


def texts() -> tuple[str, ...]:
    """All of them, different from each other."""
    drawn = random.Random(19)
    words = [word for sentence in _SENTENCES for word in sentence.split(" ")] + list(_SHORT[1:])
    found = dict.fromkeys((*_SHORT, *_SENTENCES))
    for token in SPECIAL:
        found |= dict.fromkeys((token, f"a{token}b", f"What does {token} mean?", f"{token}\nWhy?"))

    def any_of(choices: tuple[str, ...] | list[str]) -> str:
        return choices[int(drawn.random() * len(choices))]  # `random()` is the same in every release of Python

    while len(found) < COUNT - 6:
        parts = [any_of(words) + any_of(_GLUE) for _ in range(1 + int(drawn.random() * 12))]
        if drawn.random() < 0.05:
            parts.append(any_of(SPECIAL))
        found["".join(parts)] = None
    for unit in ("What is it? ", "日本語の文。", "aaaa", "🙂 ", "\n\n", "1234567890 "):
        found[unit * (_LONG_CHARACTERS // len(unit))] = None
    return tuple(found)
