"""Checkpoints made from a seed: the exact shapes of a LLaVA-1.5, and weights with the statistics of trained ones."""
