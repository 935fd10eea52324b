"""Packages that only some requests need: `pip install 'llava-verifier[ssh]'`. What is missing is said before any work."""

from __future__ import annotations

from importlib.util import find_spec

from verifier.core.errors import UsageError

EXTRAS = {"ssh": "asyncssh", "adb": "adbutils", "report": "matplotlib"}
"""Extras of the package and the module that each one brings."""


def require_extra(extra: str, what: str) -> None:
    """Raises `UsageError` where the module of an extra is not installed, which `what` needs."""
    module = EXTRAS[extra]
    if find_spec(module) is None:
        raise UsageError(
            f"{what} needs a package that is not installed",
            got=f"no module {module}",
            expected=f"the extra {extra} of llava-verifier",
            fix=f"pip install 'llava-verifier[{extra}]'",
        )
