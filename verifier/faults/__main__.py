"""`python -m verifier.faults`: inject real faults one at a time, and see whether the gate finds them."""

import sys

from verifier.faults.cli import main

if __name__ == "__main__":
    sys.exit(main())
