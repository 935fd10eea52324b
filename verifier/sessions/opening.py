"""Open what a session is held against."""

from __future__ import annotations

from contextlib import closing

from verifier.core.errors import UsageError
from verifier.gather.official import tokenizer_of
from verifier.gather.opening import Request, open_request
from verifier.sessions.inputs import Subject


def open_subject(request: Request) -> Subject:
    """Program, checkpoint and the app's tokenizer file. Raises `VerifierError` subclasses."""
    opened = open_request(request)
    with closing(opened.runner):
        path = tokenizer_of(opened)
    if path is None:
        raise UsageError("no tokenizer file lies beside program or checkpoint", fix="give --tokenizer FILE")
    return Subject(opened.artifact, opened.caller, opened.checkpoint, opened.family, opened.tokenizer, path)
