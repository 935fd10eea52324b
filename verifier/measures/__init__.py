"""What is computed from program, checkpoint, tokenizer and runs for the checks. Records that checks read lie in modules without a model."""
