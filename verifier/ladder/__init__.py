"""Rung against rung, layer by layer: traces of the runtime, their replay, alignment with the model, blocks."""
