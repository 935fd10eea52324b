"""`pytest --pte llava.pte`: every check and case as a test; pytest finds the hooks here, by the entry point of pyproject.toml."""

from verifier.plugin.hooks import pytest_addoption, pytest_configure, pytest_load_initial_conftests

__all__ = ["pytest_addoption", "pytest_configure", "pytest_load_initial_conftests"]
