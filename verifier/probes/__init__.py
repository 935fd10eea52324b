"""Questions to a program whose answers need no reference: the same tokens in other chunks, another history, other threads."""
