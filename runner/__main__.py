"""`python -m verifier.runner BUNDLE --target T [--result DIR]`: carry out a saved bundle, keep the result, compare with what is expected."""

import sys

from verifier.runner.saved import main

if __name__ == "__main__":
    sys.exit(main())
