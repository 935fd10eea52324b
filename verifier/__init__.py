"""A release gate for LLaVA-1.5 on ExecuTorch."""

import sys

if sys.argv[:1] == [
    "-m"
]:  # Python is looking for the command of `python -m verifier.COMMAND`: nothing else has run yet
    from verifier.core.start import own_process

    own_process()
