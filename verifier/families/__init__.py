"""Model families: what is particular to each, the calling conventions of programs, and what their checkpoints have in common."""
