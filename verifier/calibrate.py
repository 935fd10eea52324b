"""`python -m verifier.calibrate PTE --variant PTE ...`: measure a clean export and write the bands that it must stay in."""

import sys

from verifier.commands.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
