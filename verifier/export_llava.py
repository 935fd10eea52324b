"""`python -m verifier.export_llava --pte-name llava.pte --with-artifacts`: export LLaVA-1.5 to ExecuTorch."""

import sys

from verifier.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
