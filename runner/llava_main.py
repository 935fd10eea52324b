"""`python -m verifier.runner.llava_main`: the flags and the output of ExecuTorch's `llava_main`, on the Python runtime."""

import sys

from verifier.commands.ask import main

if __name__ == "__main__":
    sys.exit(main())
