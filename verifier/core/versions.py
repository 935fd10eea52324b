"""Versions of other packages that were never tried: they run if every name that is used is there, and a warning says so."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from verifier.core import upstream
from verifier.core.errors import UpstreamError, UsageError
from verifier.core.files import replacing
from verifier.core.python import cache_folder
from verifier.core.upstream import SEEN, File, Name


def installed(package: str) -> str | None:
    """The version of a package without what a build adds to it (`2.13.0` of `2.13.0+cpu`); None if it is not installed."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def untried() -> dict[str, str]:
    """Packages of which another version is installed than all that were tried, and that version."""
    found = {package: installed(package) for package in SEEN}
    return {package: has for package, has in found.items() if has is not None and has not in SEEN[package]}


def warning() -> str:
    """What to say of versions that were not tried; nothing where all were."""
    found = untried()
    if not found:
        return ""
    listed = ", ".join(f"{package} {has} (tried: {', '.join(SEEN[package])})" for package, has in found.items())
    return f"this verifier was not tried with {listed}; every name that it uses is there"


def missing_names() -> list[UpstreamError]:
    """The names that an installed version lacks and that verifying or exporting needs. Imports all of the packages: some 15 seconds."""
    import torch  # noqa: F401  the runtime's library is found once torch has loaded its own

    found = []
    for name in vars(upstream).values():
        if isinstance(name, Name | File) and not name.optional:
            try:
                name.resolve()
            except UpstreamError as error:
                found.append(error)
    return found


def require_names() -> None:
    """Resolve all names if a version was not tried; once for each set of versions, which the user's cache remembers. Raises `UpstreamError`."""
    found = untried()
    if not found:
        return
    known = {package: installed(package) for package in SEEN} | {"python": sys.version, "verifier": _own_names()}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]
    passed = cache_folder() / f"names-{digest}.json"
    if passed.is_file():
        return
    missing = missing_names()
    if missing:
        listed = "; ".join(f"{package} {has}" for package, has in found.items())
        raise UpstreamError(
            f"{len(missing)} names that the verifier uses are not in the installed versions, which were never tried",
            got=listed,
            expected="; ".join(f"{package} {' or '.join(SEEN[package])}" for package in found),
            where="; ".join(dict.fromkeys(error.one_line for error in missing))[:2000],
            fix=" ".join(("pip install", *(upstream.requirement(package) for package in found))),
        )
    with suppress(UsageError), replacing(passed) as temporary:  # without a cache they are resolved again
        temporary.write_text(json.dumps(known) + "\n")


def _own_names() -> str:
    """A hash of the table: another verifier asks for other names."""
    return hashlib.sha256(repr([x for x in vars(upstream).values() if isinstance(x, Name | File)]).encode()).hexdigest()
