"""`python -m verifier.compare OLD.pte NEW.pte`: is the candidate better, the same, or worse than what ships?"""

import sys

from verifier.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
