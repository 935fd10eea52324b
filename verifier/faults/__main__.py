"""`python -m verifier.faults`."""

import sys

from verifier.faults.cli import main

sys.exit(main())
