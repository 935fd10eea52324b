"""`python -m tests.bench.arm_instructions [--pte PTE]`: what a prefill is made of on Arm, as numbers of instructions.

QEMU's own instrumentation counts them (arm_counter.c, a plugin for Debian's dynamic `qemu-user`; `qemu-user-static` takes none), on a CPU model
with the dot product and on one with i8mm. A method is called once and twice: the difference is one call, without loading and packing.
Numbers of instructions are no times: an SMMLA does twice the work of an SDOT, and how fast each one is differs from core to core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from verifier.core.errors import RunnerError
from verifier.families.checkpoint import EMBEDDED
from verifier.runner.bundle import save_bundle
from verifier.runner.native import bundle_command, find_arm_binary, is_portable
from verifier.runner.protocol import Array, Bundle, Call
from verifier.runner.qemu import SYSROOT

Counts = dict[str, int]
MODELS = {"cortex-a76": "dot product", "max,sme=off": "i8mm"}
SHOWN = ("sdot", "smmla", "fmla", "vector_load", "load", "all")
PREFILL_TOKENS = 576
"""An image's: what goes through the decoder in one call."""
_HERE = Path(__file__).parent


def build_plugin(folder: Path) -> Path:
    """The plugin, compiled for this machine. Raises `RunnerError`."""
    made = folder / "counter.so"
    words = [_tool("gcc", "gcc"), "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", made]
    subprocess.run([*words, _HERE / "arm_counter.c"], check=True)
    return made


def build_loop(folder: Path, times: int) -> Path:
    """The program of known instructions, its loop `times` rounds long."""
    made = folder / "loop"
    words = [
        _tool("aarch64-linux-gnu-gcc", "g++-aarch64-linux-gnu"),
        "-nostdlib",
        "-static",
        f"-Wa,--defsym,TIMES={times}",
    ]
    subprocess.run([*words, "-o", made, _HERE / "arm_loop.s"], check=True)
    return made


def count(plugin: Path, cpu: str, words: Sequence[str]) -> Counts:
    """How many instructions of each class a program runs under emulation. Raises `RunnerError`."""
    emulator = _tool("qemu-aarch64", "qemu-user")
    command = [str(emulator), "-L", str(SYSROOT), "-cpu", cpu, "-plugin", str(plugin), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if line.startswith("counted ")]
    if done.returncode != 0 or len(told) != 1:
        raise RunnerError("the program was not counted", got=done.stderr[-1000:], where=cpu)
    counts: Counts = json.loads(told[0].removeprefix("counted "))
    return counts


def count_call(plugin: Path, cpu: str, pte: Path, method: str, inputs: tuple[Array, ...]) -> Counts:
    """One call of a method on one thread: two calls less one."""
    binary = find_arm_binary()
    if is_portable(binary):
        raise RunnerError("the folder for phones is not counted", got=binary, fix="make native-arm")
    counts = []
    for calls in (1, 2):
        with tempfile.TemporaryDirectory() as temporary:
            sent, back = Path(temporary) / "bundle", Path(temporary) / "result"
            sent.mkdir()
            back.mkdir()
            save_bundle(Bundle(pte, (Call(method, inputs, keep=False),) * calls, threads=1), sent)
            counts.append(count(plugin, cpu, bundle_command(binary, sent, back)))
            if json.loads((back / "result.json").read_text())["outcome"] != "ok":
                raise RunnerError("the call failed", got=(back / "result.json").read_text()[:500], where=method)
    return {name: counts[1][name] - counts[0][name] for name in counts[0]}


def _tool(name: str, package: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise RunnerError(f"{name} is not installed", fix=f"apt-get install {package}")
    return Path(found)


def subjects(width: int) -> dict[str, tuple[str, tuple[Array, ...]]]:
    """What is counted: a method and its inputs, by what it is called in the table."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> tuple[Array, ...]:
        return rng.normal(0, 0.1, (1, length, width)).astype(np.float32), np.array([0])

    image = rng.integers(0, 256, (3, 336, 336), dtype=np.uint8)
    return {
        f"decoder, prefill of {PREFILL_TOKENS} tokens": ("text_decoder", tokens(PREFILL_TOKENS)),
        "decoder, one token": ("text_decoder", tokens(1)),
        "vision encoder": ("vision_encoder", (image,)),
    }


def table(pte: Path, width: int) -> str:
    """Millions of instructions of each class, and the ratio of all of them."""
    rows = ["| call | CPU model | SDOT | SMMLA | FMLA | vector loads | other loads | all | ratio |", "|---" * 9 + "|"]
    with tempfile.TemporaryDirectory() as temporary:
        plugin = build_plugin(Path(temporary))
        for name, (method, inputs) in subjects(width).items():
            first = None
            for cpu, has in MODELS.items():
                counts = count_call(plugin, cpu, pte, method, inputs)
                first = first or counts["all"]
                shown = " | ".join(f"{counts[one] / 1e6:,.2f}" for one in SHOWN)
                rows.append(f"| {name} | `{cpu}` ({has}) | {shown} | {counts['all'] / first:.2f} |")
    return "\n".join(rows)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.arm_instructions", description=__doc__)
    parser.add_argument("--pte", type=Path, default=EMBEDDED / "llava_tiny.pte", help="default: the embedded program")
    parser.add_argument("--width", type=int, default=256, help="of the decoder (default: that of llava_tiny, 256)")
    options = parser.parse_args()
    print(table(options.pte, options.width))
    return 0


if __name__ == "__main__":
    sys.exit(main())
