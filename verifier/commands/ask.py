"""`python -m verifier.runner.llava_main`: the flags and the output of ExecuTorch's `llava_main`, on the Python runtime.

Exit status: 0 done, 1 the program failed, 2 bad usage or an input that cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verifier.commands.image import prepare_file
from verifier.core.command import command
from verifier.core.errors import RunnerError
from verifier.runner.conversation import ProgramError, answer


@command("llava_main")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 answered, 1 the program failed, 2 it could not be asked."""
    parser = argparse.ArgumentParser(
        prog="python -m verifier.runner.llava_main", description="Ask LLaVA about an image."
    )
    parser.add_argument("--model_path", type=Path, default=Path("llava.pte"))
    parser.add_argument(
        "--tokenizer_path", type=Path, default=Path("tokenizer.bin"), help="tokenizer.bin, .model or .json"
    )
    parser.add_argument(
        "--image_path", type=Path, required=True, help="a picture, or *.npy or *.pt from verifier.image_util"
    )
    parser.add_argument("--prompt", default="ASSISTANT:", help="the text behind the image")
    parser.add_argument("--seq_len", type=int, default=768, help="positions to use at most")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu_threads", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if options.seq_len < 1 or not 0 <= options.temperature <= 100 or not 0 <= options.cpu_threads <= 1024:
            raise RunnerError(
                "a flag is out of range", expected="seq_len >= 1, temperature 0 to 100, cpu_threads 0 to 1024"
            )
        answer(options, prepare_file)
    except ProgramError as error:
        print(f"\nllava_main: {error}", file=sys.stderr)
        return 1
    return 0
