"""Why a program cannot be interpreted."""

from __future__ import annotations

from verifier.errors import VerifierError


class UnknownOperationError(VerifierError):
    """The program uses an operation whose semantics the interpreter does not have. Never skipped: it is an ERROR."""


class ProgramFaultError(Exception):
    """The program itself asks for something impossible, such as a cache row outside its cache."""
