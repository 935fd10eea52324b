"""From a checkpoint's tokenizer files to ids: one owner, two independent encoders, transformers as the reference."""
