"""Sound programs of other exporters, made anew: does the gate pass them all? `python -m tests.bench.foreign WORK`.

Fifty exports of six random checkpoints: upstream's `export_llava` (without its limits of prompt length and ranges) and optimum-executorch, groups of
32, 64 and 128, affine and HQQ, int8 and fp32 vision, both attention operators. None has a manifest, calibration or golden data. Two hours on two
cores; an interrupted run goes on where it was. optimum-executorch gets an environment of its own (WORK/optimum, 1.7 GB), or `--optimum PYTHON`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from verifier.core.progress import Progress
from verifier.core.records import JsonObject
from verifier.synth.folder import write_checkpoint

PINS = ("optimum-executorch==1.1.0", "executorch==1.5.1", "torch==2.13.0")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shape:
    """Geometry of a random checkpoint; the vocabulary is of 1,024 pieces and 64 more."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vision_width: int = 64
    vision_layers: int = 3
    side: int = 336


@dataclass(frozen=True)
class Export:
    """One program: who makes it of which checkpoint, and the exporter's own options."""

    exporter: Literal["upstream", "optimum"]
    checkpoint: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """For files and reports."""
        chosen = "-".join(option.lstrip("-").replace("=", "_").replace(" ", "-") for option in self.options)
        return f"{self.exporter}-{self.checkpoint}-{chosen}"


SHAPES = {
    "plain-1": Shape(256, 512, 2, 4, 4),
    "plain-2": Shape(256, 768, 3, 2, 2, vision_width=128),
    "plain-3": Shape(384, 512, 2, 6, 6),
    "grouped-1": Shape(256, 768, 3, 8, 2, side=112),
    "grouped-2": Shape(384, 768, 4, 6, 3),
    "one-key-head": Shape(128, 384, 2, 4, 1, side=224),
}
"""Upstream's exporter knows neither grouped queries nor another side than 336: it gets the plain ones."""


def _upstream() -> list[Export]:
    sdpa: tuple[tuple[str, ...], ...] = ((), ("--no-custom-sdpa",))
    chosen = [
        ("--mended", f"--group-size {group}", *quantizer, *attention)
        for group in (32, 64, 128)
        for quantizer in ((), ("--affine",))
        for attention in sdpa
    ]
    return [Export("upstream", name, options) for name in ("plain-1", "plain-2") for options in chosen]


def _optimum() -> list[Export]:
    embeddings = (
        ("qembedding=8w",),
        ("qembedding=8w", "qembedding_group_size=32"),
        ("qembedding=4w", "qembedding_group_size=32"),
    )
    exports = [
        Export("optimum", name, (f"qlinear_group_size={group}", *embedding, f"max_length={length}"))
        for name, length in (("plain-3", 768), ("grouped-1", 320), ("grouped-2", 700), ("one-key-head", 512))
        for group, embedding in zip((32, 64, 128), embeddings, strict=True)
    ]
    plain = ("use_custom_sdpa=False", "use_custom_kv_cache=False")
    exports += [
        Export("optimum", name, (f"qlinear_group_size={group}", *plain, "max_length=384"))
        for name in ("grouped-1", "one-key-head")
        for group in (32, 64, 128)
    ]
    exports += [
        Export("optimum", name, (*options, "max_length=384"))
        for name in ("grouped-1", "one-key-head")
        for options in (
            ("qlinear=8da8w",),
            ("qlinear=none", "qembedding=none"),
            ("qlinear_encoder=8da4w", "qlinear_encoder_group_size=32"),
            ("qlinear=none", "qembedding=8w"),
        )
    ]
    return exports


EXPORTS = (*_upstream(), *_optimum())


def config(shape: Shape) -> JsonObject:
    """The checkpoint's config.json."""
    pieces, heads = 1024, max(1, shape.vision_width // 32)
    text = {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": pieces + 64,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": shape.vision_width,
        "intermediate_size": 3 * shape.vision_width,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": heads,
        "image_size": shape.side,
        "patch_size": 14,
        "projection_dim": 64,
    }
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": pieces,
        "image_seq_length": (shape.side // 14) ** 2,
        "pad_token_id": pieces + 1,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "vision_config": vision,
        "text_config": text,
    }


def make_checkpoint(name: str, work: Path) -> Path:
    """Random weights by the checkpoint's name; made once."""
    folder = work / "checkpoints" / name
    if not (folder / "config.json").is_file():
        write_checkpoint(folder, config(SHAPES[name]), seed=list(SHAPES).index(name), progress=Progress(quiet=True))
    return folder


def make_environment(folder: Path) -> Path:
    """A Python with optimum-executorch; raises `CalledProcessError` where it cannot be installed."""
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.is_file():
        venv.create(folder, with_pip=True)
        for pins in (PINS[2:], PINS):  # torch first and alone: pip then takes a local CPU build
            subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True)
        ready.touch()
    return python


def make_program(export: Export, pte: Path, *, checkpoint: Path, optimum: Path) -> None:
    """Run the exporter in a process of its own; raises `CalledProcessError`, with what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pte.parent.mkdir(parents=True, exist_ok=True)
    if export.exporter == "upstream":
        words = [word for option in export.options for word in option.split()]
        command = [sys.executable, "-m", "tests.bench.upstream", str(checkpoint), str(pte), *words]
    else:
        environment.pop("PYTHONPATH", None)
        script, out = Path(__file__).with_name("optimum.py"), pte.with_suffix("")
        command = [
            str(optimum),
            "-P",
            str(script),
            str(checkpoint),
            str(out),
            *export.options,
        ]  # it is named like the package
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    if export.exporter == "optimum":
        (out / "model.pte").rename(pte)


def verify(pte: Path, checkpoint: Path) -> JsonObject:
    """The whole gate in a process of its own: exit status and the checks that did not pass."""
    report = pte.with_suffix(".json")
    command = [sys.executable, "-m", "verifier.test_pte", str(pte), "--model", str(checkpoint), "--quiet"]
    status = subprocess.run([*command, "--json", str(report)], check=False, cwd=ROOT, capture_output=True, text=True)
    if not report.is_file():
        return {"status": status.returncode, "alarms": [status.stderr[-2000:]], "checks": 0}
    checks = json.loads(report.read_text())["checks"]
    alarms = [f"{c['id']} {c['case']}: {c['message']}" for c in checks if c["verdict"] in ("fail", "error")]
    return {"status": status.returncode, "alarms": alarms, "checks": len(checks)}


def run(export: Export, work: Path, optimum: Path) -> JsonObject:
    """Export and verify; an exporter that fails is no alarm of the gate, and is said."""
    checkpoint, pte = make_checkpoint(export.checkpoint, work), work / "programs" / f"{export.name}.pte"
    try:
        if not pte.is_file():
            make_program(export, pte, checkpoint=checkpoint, optimum=optimum)
    except subprocess.CalledProcessError as error:
        return {**asdict(export), "not_exported": str(error.stderr).strip().splitlines()[-1:]}
    return {**asdict(export), **verify(pte, checkpoint)}


def main() -> int:
    """One line an export; exit status 1 when a sound program is not verified, or was not made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--optimum", type=Path, help="Python of an environment that has optimum-executorch")
    parser.add_argument("--only", default="", help="part of the exports' names")
    options = parser.parse_args()
    outcomes = options.work / "outcomes.json"
    made: dict[str, JsonObject] = json.loads(outcomes.read_text()) if outcomes.is_file() else {}
    optimum = options.optimum or make_environment(options.work / "optimum")
    for export in EXPORTS:
        if "status" in made.get(export.name, {}) or options.only not in export.name:
            continue
        made[export.name] = run(export, options.work, optimum)
        outcomes.write_text(json.dumps(made, indent=1))
        print(
            export.name,
            {k: v for k, v in made[export.name].items() if k in ("status", "checks", "alarms", "not_exported")},
            flush=True,
        )
    failed = [name for name, outcome in made.items() if outcome.get("status") != 0]
    missing = sum("not_exported" in outcome for outcome in made.values())
    print(f"{len(made)} exports, {len(failed) - missing} not verified, {missing} not exported")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
