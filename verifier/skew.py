"""`python -m verifier.skew FILE --runtimes 1.4.1,1.5.1`: one file on several releases of the runtime."""

import sys

from verifier.commands.skew import main

if __name__ == "__main__":
    sys.exit(main())
