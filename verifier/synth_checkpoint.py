"""`python -m verifier.synth_checkpoint --geometry llava-1.5-7b --out DIR`: a checkpoint of full size where there is none."""

import sys

from verifier.commands.synthesize import main

if __name__ == "__main__":
    sys.exit(main())
