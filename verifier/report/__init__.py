"""The run as files: JSON first, everything else from it."""
