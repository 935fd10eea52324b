"""What can go wrong, said so that a reader can act on it.

Every error names what failed, what was got, what was expected, where, and how to fix it. A `VerifierError` means "not
verified" (exit status 2); a fault of the artifact under test is not an error but a failed check (exit status 1).
"""

from __future__ import annotations


class VerifierError(Exception):
    """Base of all refusals. Fields that do not apply are left out of the text."""

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        where: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.got, self.expected, self.where, self.fix = what, got, expected, where, fix
        details = (("got", got), ("expected", expected), ("where", where), ("to fix", fix))
        super().__init__("\n".join([what, *(f"  {name}: {value}" for name, value in details if value is not None)]))

    @property
    def one_line(self) -> str:
        """The text for a place where a line break would not do."""
        return str(self).replace("\n  ", "; ")


class UsageError(VerifierError):
    """The command line cannot be carried out as given."""


class CheckpointError(VerifierError):
    """A Hugging Face checkpoint is missing, damaged, of another geometry, or not the one that belongs to the artifact."""


class ArtifactError(VerifierError):
    """A file is not a readable `.pte`, or not one of a LLaVA."""


class ManifestError(VerifierError):
    """The manifest beside a `.pte` is damaged or belongs to another file."""


class ImageError(VerifierError):
    """An image cannot be read, or has a size that no preprocessing can handle."""


class GoldenError(VerifierError):
    """Golden data is missing, damaged, or belongs to another checkpoint or recipe."""


class ExportError(VerifierError):
    """A checkpoint cannot be exported with the recipe that was asked for."""


class UpstreamError(VerifierError):
    """The installed version of another package lacks a name that is used (`verifier.core.upstream`)."""


class RunnerError(VerifierError):
    """Our own machinery for running a program failed; the program itself is not to blame."""


class SessionError(VerifierError):
    """A recorded session is damaged, or says something that cannot be."""


class ArchiveError(VerifierError):
    """Saved evidence cannot be read, or a value of it cannot be saved."""
