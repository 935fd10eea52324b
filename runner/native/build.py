"""`python -m verifier.runner.native.build [--out FOLDER]`: build `llava_main` against the installed ExecuTorch wheel (`make native`)."""

import sys

from verifier.runner.native.cmake import main

if __name__ == "__main__":
    sys.exit(main())
