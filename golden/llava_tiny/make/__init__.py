"""How the embedded miniature was made: scenes, tokenizer, training, evaluation."""
