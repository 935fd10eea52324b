"""`python -m verifier.runner.llava_main`: the flags and the output of ExecuTorch's `llava_main`, on the Python runtime."""

import sys
from collections.abc import Sequence

from verifier.commands.image import prepare_file
from verifier.core.command import command
from verifier.runner.conversation import ask


@command("llava_main")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 answered, 1 the program failed, 2 it could not be asked."""
    return ask(arguments, prepare_file)


if __name__ == "__main__":
    sys.exit(main())
