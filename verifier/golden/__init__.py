"""Golden answers, bands and budgets of a checkpoint; `python -m verifier.golden` changes the answers."""
