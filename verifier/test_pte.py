"""`python -m verifier.test_pte llava.pte`: may these bytes ship?"""

import sys

from verifier.commands.verify import main

__test__ = False  # a command, not a test module, whatever its name says

if __name__ == "__main__":
    sys.exit(main())
