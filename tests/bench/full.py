"""The announcement's tables at full size, measured here: `python -m tests.bench.full MODEL WORK`, an hour and a half.

MODEL is a checkpoint (`verifier.synth_checkpoint --geometry llava-1.5-7b`), WORK a folder for four programs of 4 GB, which are exported if
they are not there. Runs are made by the C++ runner, three of each, those of one table in turns. `docs/full-size.json` keeps what was
measured and `docs/full-size.md` is written from it.
"""

from __future__ import annotations

import copy
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.memory import await_peak
from verifier.artifact.program import open_artifact
from verifier.core.files import replacing
from verifier.families.registry import open_checkpoint

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROUNDS = 3
PROMPT = "ASSISTANT:"


@dataclass(frozen=True)
class File:
    """An export: flags of the exporter, and the methods that differ from those of the file before it."""

    name: str
    flags: tuple[str, ...]
    changed: tuple[str, ...]
    one_partitioner: bool = False


FILES = (
    File("release", ("--with-artifacts",), ("vision_encoder", "token_embedding", "text_decoder")),
    File("fp32-embedding", ("--embedding-bits", "32"), ("token_embedding",)),
    File("2048", ("--embedding-bits", "32", "--max-seq-len", "2048"), ("token_embedding", "text_decoder")),
    File("one-partitioner", (), ("token_embedding", "text_decoder"), one_partitioner=True),
)


@dataclass(frozen=True)
class Setting:
    """A run of a file; `seed` is the announcement's figure, if it has one."""

    name: str
    file: str
    flags: tuple[str, ...] = ()
    seed: float | None = None


COPIED = ("--load_mode=file", "--workspace_sharing=global")
"""Constants in memory, as the announcement's runner loads them: mapped ones count only where they are touched."""
MEMORY = (
    Setting(
        "2048 positions, fp32 embedding, a workspace for each delegate",
        "2048",
        ("--load_mode=file", "--workspace_sharing=disabled"),
        10.44,
    ),
    Setting("workspaces shared", "2048", COPIED, 6.67),
    Setting("768 positions", "fp32-embedding", COPIED, 5.44),
    Setting("8-bit embedding: the release", "release", COPIED, 5.44 - 300 / 1024),
    Setting("constants mapped, not copied", "release", ("--load_mode=mmap", "--workspace_sharing=global")),
)
SPEED = (
    Setting("one partitioner", "one-partitioner", (), 29.95),
    Setting("two partitioners: the release", "release", (), 17.82),
    Setting("the release, 1 thread", "release", ("--cpu_threads=1",)),
)
SEED_DECODE = {"one partitioner": 8.75, "two partitioners: the release": 8.93}


def export_missing(model: Path, work: Path) -> None:
    """Export what is not there, in one process: a method that is the same in the next file is lowered once."""
    from verifier.commands.export import main
    from verifier.export import lower, run

    kept: dict[str, Any] = {}
    right, partitioners = run.lowered, lower._partitioners
    for file in FILES:
        pte = work / f"{file.name}.pte"
        if pte.exists():
            kept.clear()  # what this file would have left is not known
            continue
        for method in file.changed:
            kept.pop(method, None)

        def lowered(method: str, *given: Any) -> Any:
            if method not in kept:
                kept[method] = right(method, *given)
            return copy.deepcopy(kept[method])

        def one(method: str) -> list[Any]:
            listed = partitioners(method)
            return listed[-1:] if method == "text_decoder" else listed

        run.lowered = lowered
        lower._partitioners = one if file.one_partitioner else partitioners
        try:
            if main(["--model", str(model), "--pte-name", str(pte), *file.flags]) != 0:
                raise SystemExit(f"{pte}: not exported")
        finally:
            run.lowered, lower._partitioners = right, partitioners


def run_once(binary: Path, pte: Path, work: Path, flags: Sequence[str]) -> dict[str, float]:
    """One process: peak resident memory in GiB, seconds of prefill, tokens/s of decoding."""
    words = [
        str(binary),
        f"--model_path={pte}",
        f"--tokenizer_path={work / 'tokenizer.bin'}",
        f"--image_path={work / 'image.npy'}",
        f"--prompt={PROMPT}",
        *flags,
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        peak = await_peak(process)
    found = re.search(r"prefill ([\d.]+) s \((\d+) tokens\), decode ([\d.]+) tokens/s \((\d+) tokens\)", said)
    if process.returncode != 0 or found is None:
        raise SystemExit(f"{pte}: {process.returncode} {said}")
    return {
        "peak_gib": peak,
        "prefill_s": float(found[1]),
        "prefill_tokens": float(found[2]),
        "decode_tokens_s": float(found[3]),
        "decode_tokens": float(found[4]),
    }


def measure(
    settings: Sequence[Setting], run: Callable[[Setting], dict[str, float]]
) -> dict[str, list[dict[str, float]]]:
    """`ROUNDS` runs of every setting, in turns."""
    made: dict[str, list[dict[str, float]]] = {setting.name: [] for setting in settings}
    for number in range(ROUNDS):
        for setting in settings:
            made[setting.name].append(run(setting))
            print(f"{number + 1}/{ROUNDS} {setting.name}: {made[setting.name][-1]}", file=sys.stderr)
    return made


def _mean(runs: Sequence[dict[str, float]], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


def _figure(runs: Sequence[dict[str, float]], key: str, digits: int = 2) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def arithmetic(model: Path, work: Path) -> dict[str, float]:
    """GiB that two settings must save by what the files declare: planned memory, and bytes of the file. `cache` is the fp32 KV-cache of
    1280 positions, a part of the former."""
    files = {name: open_artifact(work / f"{name}.pte") for name in ("2048", "fp32-embedding", "release")}
    declared = {
        name: artifact.path.stat().st_size + sum(method.planned_bytes for method in artifact.methods.values())
        for name, artifact in files.items()
    }
    text = open_checkpoint(str(model)).geometry.text
    return {
        "768 positions": (declared["2048"] - declared["fp32-embedding"]) / 2**30,
        "8-bit embedding: the release": (declared["fp32-embedding"] - declared["release"]) / 2**30,
        "cache": (2048 - 768) * 2 * text.layers * text.kv_heads * text.head_dim * 4 / 2**30,
    }


def memory_table(measured: dict[str, list[dict[str, float]]], expected: dict[str, float]) -> str:
    """Peak memory step by step, with what each step saves."""
    lines = [
        "| | peak, GiB | saves, GiB | by arithmetic | ratio | announced (saves) |",
        "|---" * 6 + "|",
    ]
    for before, setting in zip((None, *MEMORY), MEMORY, strict=False):
        peak, seed = _mean(measured[setting.name], "peak_gib"), setting.seed
        cells = [setting.name, _figure(measured[setting.name], "peak_gib"), *[""] * 4]
        if before is not None:
            saved = _mean(measured[before.name], "peak_gib") - peak
            cells[2] = f"{saved:.2f}"
            if setting.name in expected:
                cells[3:5] = f"{expected[setting.name]:.2f}", f"{saved / expected[setting.name]:.2f}"
        if seed is not None:
            cells[5] = f"{seed:.2f}"
            if before is not None and before.seed is not None:
                cells[5] += f" ({before.seed - seed:.2f})"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def speed_table(measured: dict[str, list[dict[str, float]]]) -> str:
    """Prefill and decoding, as ratios to the first row beside the announcement's."""
    first = SPEED[0]
    lines = ["| | prefill, s | ratio (announced) | decode, tokens/s | ratio (announced) |", "|---" * 5 + "|"]
    for setting in SPEED:
        runs = measured[setting.name]
        prefill = _mean(runs, "prefill_s") / _mean(measured[first.name], "prefill_s")
        decode = _mean(runs, "decode_tokens_s") / _mean(measured[first.name], "decode_tokens_s")
        said = f" ({setting.seed / first.seed:.2f})" if setting.seed and first.seed else ""
        told = f" ({SEED_DECODE[setting.name] / SEED_DECODE[first.name]:.2f})" if setting.name in SEED_DECODE else ""
        cells = [setting.name, _figure(runs, "prefill_s"), f"{prefill:.2f}{said}"]
        cells += [_figure(runs, "decode_tokens_s"), f"{decode:.2f}{told}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(data: dict[str, Any]) -> str:
    """docs/full-size.md."""
    sizes = "\n".join(f"| {name} | {size / 1e9:.3f} |" for name, size in data["file_bytes"].items())
    return f"""# LLaVA-1.5-7B, whole

<!-- Written by python -m tests.bench.full. Do not edit. -->

Measured on {data["date"]}: {data["machine"]}; {data["versions"]}. C++ runner, an image of 576 tokens, mean of {ROUNDS} runs with the smallest
and the largest; the runs of a table were made in turns. *Announced* are the figures of ExecuTorch's announcement on a OnePlus 12: times
there are not to be compared with times here, ratios are.

| file | GB |
|---|---|
{sizes}

## Memory

{memory_table(data["memory"], data["must_save_gib"])}

*By arithmetic*: planned memory and size of the two files. Of what 2048 positions plan more, {data["must_save_gib"]["cache"]:.2f} GiB are the KV-cache; the rest are
activations, planned for a prefill of every position at once. A workspace for each delegate grows with the tokens of a chunk: here the image
is one chunk. Constants are copied into memory, as the announcement's runner does; `llava_main` maps them unless it is told otherwise (last row).

## Speed

{speed_table(data["speed"])}

The announcement's third row, its i8mm kernels, is Arm's alone: [instructions counted under emulation](targets.md#arm-kernels-counted).
"""


def main() -> None:
    """Export, run, write."""
    import datetime

    from verifier.export.manifest import cpu_kind, package_versions
    from verifier.runner.native import find_binary

    model, work = (Path(word).resolve() for word in sys.argv[1:3])
    export_missing(model, work)
    for name in ("tokenizer.bin", "image.npy"):
        if not (work / name).is_file():
            raise SystemExit(f"{work / name} is missing: python -m verifier.export_llava --with-artifacts writes it")
    binary = find_binary()

    def run(setting: Setting) -> dict[str, float]:
        return run_once(binary, work / f"{setting.file}.pte", work, setting.flags)

    sizes = {file.name: (work / f"{file.name}.pte").stat().st_size for file in FILES}
    kind = cpu_kind()
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    data = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {kind['model']}, {kind['capability']}",
        "versions": versions,
        "file_bytes": sizes,
        "must_save_gib": arithmetic(model, work),
        "memory": measure(MEMORY, run),
        "speed": measure(SPEED, run),
    }
    for path, text in (
        (DOCS / "full-size.json", json.dumps(data, indent=1) + "\n"),
        (DOCS / "full-size.md", page(data)),
    ):
        with replacing(path) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    main()
