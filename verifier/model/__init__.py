"""The `definition` rung: LLaVA-1.5 as export-friendly eager PyTorch, its preprocessing and its prompt."""
