"""`python -m verifier.runner.arm_python`: put together what `--target qemu-python` needs."""

import sys

from verifier.runner.qemu_python import main

if __name__ == "__main__":
    sys.exit(main())
