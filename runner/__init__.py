"""Run a `.pte` somewhere else and bring back what it computed. Knows nothing of what is right or wrong."""
