"""`python -m verifier.runner.native.phone`: `llava_main` for any arm64 Linux or adb shell, in one folder (`make phone`)."""

import sys

from verifier.runner.native.portable import main

if __name__ == "__main__":
    sys.exit(main())
