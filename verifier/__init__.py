"""A release gate for LLaVA-1.5 on ExecuTorch."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m MODULE`: nothing of it has run yet
    from verifier.core.start import command, end_unverified, own_process

    if command().partition(".")[0] == "verifier":
        own_process()
    if command().partition(".")[0] in ("verifier", "runner") and not command().endswith("child"):
        sys.excepthook = end_unverified
