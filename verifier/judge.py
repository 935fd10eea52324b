"""`python -m verifier.judge DIR`: judge again what `--keep-evidence DIR` saved, without the program, its checkpoint or a runtime."""

import sys

from verifier.commands.judge import main

if __name__ == "__main__":
    sys.exit(main())
