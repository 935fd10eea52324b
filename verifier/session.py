"""`python -m verifier.session FILE.jsonl --pte PTE`: are the answers that an app recorded those of this file to what it fed?"""

import sys

from verifier.commands.session import main

if __name__ == "__main__":
    sys.exit(main())
