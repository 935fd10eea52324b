"""A release gate for LLaVA-1.5 on ExecuTorch."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m MODULE`: nothing of it has run yet
    from verifier.core.python import end_unverified, is_ours, own_process, started_module

    if started_module().partition(".")[0] == "verifier":
        own_process()
    if is_ours(started_module()) and not started_module().endswith("child"):
        sys.excepthook = end_unverified
