"""Run a `.pte` somewhere else and bring back what it computed. Knows nothing of what is right or wrong."""

import verifier as _verifier  # noqa: F401  first of all: see verifier.core.python
