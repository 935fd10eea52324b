"""`python -m tests.bench.fuzz_reader [FILES] [SEED]`: mutated programs against the reader (`make fuzz`).

Every file must be read, or refused with an `ArtifactError`, within seconds and without growing: anything else is printed
with its seed, and the exit status is 1. The memory limit is the process's own.
"""

from __future__ import annotations

import random
import resource
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

from tests.support import EMBEDDED_PTE
from verifier.artifact.header import read_header
from verifier.artifact.program import read_program
from verifier.backends.xnnpack.graph import read_graph
from verifier.core.errors import ArtifactError

LIMIT_BYTES = 2 << 30
LIMIT_S = 20
WORDS = (0, 1, 4, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0)


def read_everything(path: Path) -> int:
    """All that the reader can read without constants: how many delegates. Raises `ArtifactError`."""
    storage, plans = read_program(path, read_header(path))
    graphs = 0
    for plan in plans.values():
        for delegate in plan.delegates:
            read_graph(delegate.payload, storage, where=plan.name)
            graphs += 1
    return graphs


def small_program() -> tuple[bytes, list[tuple[int, int]]]:
    """The embedded program cut behind its last delegate, and the places worth hitting: header, program, payloads."""
    data = EMBEDDED_PTE.read_bytes()
    header = read_header(EMBEDDED_PTE)
    _, plans = read_program(EMBEDDED_PTE, header)
    payloads = [(d.payload.offset, d.payload.size) for plan in plans.values() for d in plan.delegates]
    return data, [(0, 64), (0, header.program_bytes), *payloads]


def mutate(data: bytearray, places: list[tuple[int, int]], rng: random.Random) -> bytearray:
    """One to six wounds: a byte, a word, a copied stretch, or a cut; mostly where structure is."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        start, size = rng.choice(places[:2]) if rng.random() < 0.6 else rng.choice(places)
        at = start + rng.randrange(size)
        kind = rng.random()
        if kind < 0.35:
            data[at] = rng.randrange(256)
        elif kind < 0.8 and at + 4 <= len(data):
            word = rng.choice(WORDS) if rng.random() < 0.5 else rng.randrange(1 << rng.choice((4, 8, 16, 32)))
            aligned = at - at % 4
            data[aligned : aligned + 4] = struct.pack("<I", word)
        elif kind < 0.95:
            length, source = rng.randrange(1, 64), start + rng.randrange(size)
            data[at : at + length] = data[source : source + length]
        else:
            del data[rng.randrange(len(data)) :]
            break
        if not data:
            break
    return data


def main() -> int:
    """Fuzz; 0 if every file was read or refused."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    original, places = small_program()
    refused = slowest = faults = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder) / "mutated.pte"
        for number in range(files):
            path.write_bytes(mutate(bytearray(original), places, random.Random(f"{seed}/{number}")))
            signal.alarm(LIMIT_S)
            begun = time.perf_counter()
            try:
                read_everything(path)
            except ArtifactError:
                refused += 1
            except Exception as error:
                faults += 1
                print(f"seed {seed} file {number}: {type(error).__name__}: {error}", flush=True)
            signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - begun)
            if number % 5000 == 4999:
                print(
                    f"{number + 1} files, {refused:.0f} refused, {faults:.0f} faults, slowest {slowest:.2f} s",
                    flush=True,
                )
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{files} files: {refused:.0f} refused, {faults:.0f} faults, slowest {slowest:.2f} s, peak memory {peak_mib:.0f} MiB"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
