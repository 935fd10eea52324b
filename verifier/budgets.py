"""`python -m verifier.budgets PTE`: measure a clean program's size, memory and speed, and record the most that a release may have."""

import sys

from verifier.commands.budgets import main

if __name__ == "__main__":
    sys.exit(main())
