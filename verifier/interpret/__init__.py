"""The `program` rung: a `.pte` evaluated from its bytes in plain PyTorch."""
