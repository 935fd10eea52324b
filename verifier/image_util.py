"""`python -m verifier.image_util --image-path X --output-path Y`: an image as runners read it."""

import sys

from verifier.commands.image import main

if __name__ == "__main__":
    sys.exit(main())
