"""What is computed from program, checkpoint and tokenizer for the checks: records of plain data, and the functions that compute them."""
