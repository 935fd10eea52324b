"""LLaVA-1.5: the definition as export-friendly eager PyTorch, its geometry, keys, preprocessing and prompt."""
