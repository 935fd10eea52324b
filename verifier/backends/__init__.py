"""Backends: how the delegates of each are read and evaluated."""
