"""The miniature's shape: LLaVA-1.5 with every width made small and nothing left out."""

from __future__ import annotations

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from golden.llava_tiny.make.tokenizer import VOCABULARY

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
IMAGE_TOKEN_ID, PAD_TOKEN_ID = VOCABULARY, VOCABULARY + 1


def tiny_config() -> LlavaConfig:
    """CLIP tower 5 x 128 (the last layer is unused, as in LLaVA-1.5), decoder 4 x 256, 576 image tokens."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY + 64,  # two added tokens, then padding to a multiple of 64, as 32000 -> 32064
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=PAD_TOKEN_ID,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=False,
    )
