"""`python -m verifier.report report.json`: every form of a report again, without a run."""

import sys

from verifier.report.render import main

if __name__ == "__main__":
    sys.exit(main())
