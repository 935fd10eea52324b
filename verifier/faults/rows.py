"""Faults that happened in practice, by the numbers that this project gives them.

ET pytorch/executorch, LC ggml-org/llama.cpp, HF huggingface/transformers, XN google/XNNPACK: issues, pull requests or commits.
"""

from __future__ import annotations

ROWS: dict[int, tuple[str, str]] = {
    1: ("a key of the checkpoint renamed, the loader not strict", "ET#12324"),
    2: ("wrong sibling checkpoint, or its rope_theta", "ET#18859"),
    3: ("a quantization swap drops a bias", "ET#9472"),
    4: ("mean and std not fully loaded", "LC#5267"),
    5: ("bilinear where bicubic is due", "LC#27594"),
    6: ("pad against crop, black against mean", "HF#33175"),
    7: ("padding of odd sizes loses a pixel", "HF#37819"),
    9: ("feature layer subtracted twice", "LC#25817"),
    10: ("class token appended last", "LC#25814"),
    13: ("static int8 ranges from one image", "ET#4648"),
    15: ("a lowered backbone wrong on real images only", "rf-detr#1233"),
    17: ("575 slots for 576 features", "HF#36002"),
    18: ("features in wrong slots", "HF#34305"),
    19: ("the runner omits BOS", "ET#16933"),
    20: ("BOS again after the image", "LC#3645"),
    21: ("the prompt prefilled twice", "ET#17722"),
    22: ("spacing of the template", "HF#30130"),
    24: ("the previous image's embedding reused", "llama-cpp-python #90"),
    25: ("zero point of 4-bit weights assumed, another one passed", "ET#5038, ET#7410"),
    27: ("RoPE: half-split against interleaved", "ET#11808"),
    28: ("RoPE scale hard-coded", "ET#7272"),
    30: ("mask of an attention tile wrong", "ET#4869"),
    33: ("the last query row's mask unset", "ET#13332"),
    34: ("causal mask aligned upper-left", "ET#21749"),
    36: ("a mutable buffer's lifetime ends early", "ET#12182"),
    37: ("cache write-back missing", "ET#7810"),
    40: ("cache kept between prompts", "ET#21979"),
    41: ("symmetric per-token activations", "ET#2166"),
    42: ("per-tensor activations", "ET#22432"),
    43: ("weights cast before quantizing", "ET#8488"),
    45: ("quantization lost", "ET#9118"),
    46: ("zero points or scales misread", "ET#21773"),
    47: ("`add` ignores alpha", "ET#11683"),
    48: ("a fused clamp dropped", "ET#17166"),
    49: ("delegation lost in silence", "ET#21859"),
    51: ("packed int4 with the wrong stride", "XN 91c4f32d52"),
    52: ("start_pos not advanced, or twice", "ET#11592, ET#15509"),
    54: ("scratch shared between threads", "ET#20267"),
    56: ("temperature 0.8 by default", "ET#16517"),
    57: ("packing that disagrees with the kernel", "XN 767b70187d"),
    60: ("file truncated, or a bit flipped", "ET#3848"),
    61: ("a blank, or none, behind `<image>` against the tokenizer", "HF#47700, LC#7094"),
}
"""Number -> (what happened, evidence)."""
