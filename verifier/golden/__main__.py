"""`python -m verifier.golden show | add | update`: golden images and their fp32 answers, changed by hand and with a reason."""

import sys

from verifier.commands.golden import main

if __name__ == "__main__":
    sys.exit(main())
