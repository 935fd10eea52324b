"""Turn a training state into a Hugging Face folder: `python -m golden.llava_tiny.make.publish STATE.pt DIR`.

Weights are stored in fp16, as llava-1.5-7b-hf's are; everything is written so that `from_pretrained` works offline.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AddedToken, LlamaTokenizer, LlavaForConditionalGeneration, LlavaProcessor

from golden.llava_tiny.make.geometry import IMAGE_TOKEN, IMAGE_TOKEN_ID, PAD_TOKEN, PAD_TOKEN_ID, tiny_config
from golden.llava_tiny.make.lessons import CLIP_MEAN, CLIP_STD
from verifier.core import upstream
from verifier.runner.constants import SYSTEM

HERE = Path(__file__).parents[1]
CHAT_TEMPLATE = (
    SYSTEM
    + "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    + "{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    + "{% for content in message['content'] if content['type'] == 'text' %}{{ content['text'] + ' ' }}{% endfor %}"
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tokenizer(model: Path) -> LlamaTokenizer:
    """Llama's tokenizer over `tokenizer.model`, with <image> and <pad> behind it, as LLaVA-1.5 adds them."""
    folder = model.parent
    made = LlamaTokenizer.from_pretrained(
        folder, legacy=False, add_bos_token=True, model_max_length=2048, padding_side="left"
    )
    added = [AddedToken(text, special=True, normalized=False) for text in (IMAGE_TOKEN, PAD_TOKEN)]
    made.add_tokens(added, special_tokens=True)
    made.pad_token = PAD_TOKEN
    ids = made.convert_tokens_to_ids([IMAGE_TOKEN, PAD_TOKEN])
    if ids != [IMAGE_TOKEN_ID, PAD_TOKEN_ID]:
        raise RuntimeError(f"added tokens got ids {ids}, not {[IMAGE_TOKEN_ID, PAD_TOKEN_ID]}")
    return made


def publish(state: Path, directory: Path) -> None:
    """Write config, weights, tokenizer and processor into `directory`."""
    loaded = torch.load(state, weights_only=True)
    weights = loaded.get("student", loaded)
    prefix = "llava."
    weights = {
        k.removeprefix(prefix): v.to(torch.float16).contiguous() for k, v in weights.items() if k.startswith(prefix)
    }
    model = LlavaForConditionalGeneration(tiny_config())
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config
    config.dtype = "float16"
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    if (directory / "tokenizer.model").resolve() != (HERE / "tokenizer.model").resolve():
        shutil.copy(HERE / "tokenizer.model", directory / "tokenizer.model")
    side = {"height": 336, "width": 336}
    image_processor = upstream.LLAVA_IMAGE_PROCESSOR.resolve()(
        do_pad=True,
        size={"shortest_edge": 336},
        crop_size=side,
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
        resample=3,
    )
    LlavaProcessor(
        image_processor,
        tokenizer(HERE / "tokenizer.model"),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    ).save_pretrained(directory)


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
