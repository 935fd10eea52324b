"""`python -m verifier.golden show | add | update`: golden images and their fp32 answers, changed by hand and with a reason.

Never in CI: a golden that changes where it is compared with is no golden.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from verifier.artifact.program import open_artifact
from verifier.core.command import command
from verifier.core.errors import GoldenError, UsageError
from verifier.core.files import replacing, sha256_of_file
from verifier.core.progress import hushed
from verifier.core.records import JsonObject
from verifier.export.manifest import package_versions
from verifier.families.answering import greedy_answer, load_sample
from verifier.families.checkpoint import Checkpoint
from verifier.families.definition import DEFAULT_MAX_LEN, Definition
from verifier.families.driver import Script, caller_of, converse_freely
from verifier.families.family import Family
from verifier.families.pixels.image_file import read_image
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.samples import Sample
from verifier.families.tokens.agreement import compare_with_transformers, open_tokenizer
from verifier.families.tokens.records import described
from verifier.gather.conversations import logits_of, run_bundle
from verifier.golden.records import GOLDEN_SCHEMA, GoldenImage, GoldenSet, load_golden, stored
from verifier.measures.evidence import golden_folder
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle

ANSWER_TOKENS = 40


def answer(
    checkpoint: Checkpoint,
    definition: Definition,
    path: Path,
    *,
    kind: str,
    question: str,
    program: Path | None = None,
) -> JsonObject:
    """The golden entry of an image that is in `images/` beside the checkpoint, or will be: the fp32 model's greedy answer with its
    margins. A `program` proposes the answer, which saves passes and changes nothing."""
    tokenizer = open_tokenizer(checkpoint)
    blank = GoldenImage(path.stem, path, "", kind, question, (), (), "")
    family = open_family(checkpoint)
    sample, patches = load_sample(blank, tokenizer, family), family.patches
    room = min(ANSWER_TOKENS, DEFAULT_MAX_LEN + 1 - sample.prompt.length(patches))
    if room < 1:
        raise UsageError(
            "the question is too long",
            got=f"{sample.prompt.length(patches)} tokens with the image's",
            expected=f"at most {DEFAULT_MAX_LEN}",
            fix="ask a shorter one",
        )
    draft = () if program is None else answer_of_program(program, sample, family)
    ids, margins = greedy_answer(definition, sample, ends=tokenizer.ends, room=room, draft=draft)
    return {
        "name": path.stem,
        "file": f"images/{path.name}",
        "sha256": sha256_of_file(path),
        "kind": kind,
        "question": question,
        "ids": ids,
        "margins": [round(m, 4) for m in margins],
        "text": tokenizer.decode(ids),
    }


def answer_of_program(pte: Path, sample: Sample, family: Family) -> tuple[int, ...]:
    """What a program answers by itself, `ANSWER_TOKENS` ids and no EOS looked for. Raises `GoldenError` if it fails."""
    artifact = open_artifact(pte)
    script = Script(caller_of(artifact, family))
    made = converse_freely(
        script,
        image=sample.image,
        prompt=sample.prompt,
        tokens=ANSWER_TOKENS,
        patches=family.patches,
        limit=artifact.max_seq_len,
    )
    result = run_bundle(LocalRunner(), Bundle(pte, tuple(script.calls)))
    logits = logits_of(made, result.outputs)
    if logits is None:
        raise GoldenError("the program that is to propose the answer failed", got=result.message, where=pte)
    return tuple(int(token) for token in logits.argmax(axis=-1))


def write_entries(checkpoint: Checkpoint, folder: Path, entries: list[JsonObject], reason: str) -> Path:
    """Write `golden.json`, whole or not at all; what was said before about why stays in it."""
    path = folder / "golden.json"
    history = _text(folder).get("history", [])
    text = {
        "schema": GOLDEN_SCHEMA,
        "checkpoint_sha256": checkpoint.sha256,
        "made_with": package_versions(),
        "prompt_rule": open_tokenizer(checkpoint).rule.as_json(),
        "history": [*history, {"date": datetime.date.today().isoformat(), "reason": reason}],
        "images": entries,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(text, indent=1) + "\n")
    return path


def _text(folder: Path) -> JsonObject:
    """What `golden.json` holds, nothing if there is none yet. It has been through `load_golden`, or is about to be."""
    return stored(folder / "golden.json", GOLDEN_SCHEMA)


def _owned(checkpoint: Checkpoint, folder: Path, *, whole: bool = False) -> list[JsonObject]:
    """The entries there are. Raises `GoldenError` for a set that cannot be read or belongs to another checkpoint, and for answers to another
    spelling of the prompt unless the `whole` set is made anew."""
    tokenizer = open_tokenizer(checkpoint)
    compare_with_transformers(tokenizer)
    if (folder / "golden.json").is_file():
        said = load_golden(folder, checkpoint.sha256).prompt_rule
        if said is not None and not whole and not tokenizer.rule.same_prompt(said):
            raise GoldenError(
                "the golden answers are to prompts of another tokenizer",
                got=described(said),
                expected=described(tokenizer.rule.as_json()),
                where=folder / "golden.json",
                fix='answer all of them again: python -m verifier.golden update --reason "why"',
            )
    found: list[JsonObject] = _text(folder).get("images", [])
    return found


def _show(checkpoint: Checkpoint, golden: GoldenSet) -> None:
    table = Table("image", "kind", "question", "tokens", "least margin", "answer", box=None, padding=(0, 2, 0, 0))
    for image in golden.images:
        row = (image.name, image.kind, image.question or "(none)", str(len(image.ids)), f"{min(image.margins):.2f}")
        table.add_row(*row, image.text)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)  # names may have brackets
    console.print(f"{golden.path}  checkpoint {checkpoint.name} {checkpoint.sha256[:16]}…", highlight=False)
    console.print(table)
    for entry in _text(golden.path.parent).get("history", []):
        console.print(f"{entry['date']}  {entry['reason']}", highlight=False)


def _add(checkpoint: Checkpoint, folder: Path, options: argparse.Namespace) -> Path:
    source: Path = options.image
    name = source.stem
    entries = _owned(checkpoint, folder)
    if any(entry["name"] == name for entry in entries):
        raise UsageError("there is a golden image of this name", got=name, fix="use update, or rename the file")
    read_image(source)
    target = folder / "images" / source.name
    here = target.exists() and target.samefile(source)
    if target.exists() and not here:
        raise UsageError("another file of this name exists", got=target, fix="rename the image")
    family = open_family(checkpoint)
    entry = answer(
        checkpoint,
        family.definition(max_len=DEFAULT_MAX_LEN),
        source,
        kind=options.kind,
        question=family.prompt.default_question if options.question is None else options.question,
        program=options.draft,
    )
    if not here:
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
    print(f"{name}: {entry['text']!r}, least margin {min(entry['margins']):.2f}")
    return write_entries(checkpoint, folder, [*entries, entry], options.reason)


def _update(checkpoint: Checkpoint, folder: Path, options: argparse.Namespace) -> Path:
    entries = _owned(checkpoint, folder, whole=not options.names)
    names = [entry["name"] for entry in entries]
    unknown = sorted(set(options.names) - set(names))
    if unknown or not entries:
        raise UsageError("no such golden image", got=", ".join(unknown) or "an empty set", expected=", ".join(names))
    definition = open_family(checkpoint).definition(max_len=DEFAULT_MAX_LEN)
    made = []
    for entry in entries:
        if options.names and entry["name"] not in options.names:
            made.append(entry)
            continue
        kind, question = entry["kind"], entry["question"]
        new = answer(
            checkpoint, definition, folder / entry["file"], kind=kind, question=question, program=options.draft
        )
        change = "as before" if list(new["ids"]) == list(entry["ids"]) else f"{entry['text']!r} -> {new['text']!r}"
        print(f"{entry['name']}: {change}")
        made.append(new)
    return write_entries(checkpoint, folder, made, options.reason)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m verifier.golden", description="Golden images and their fp32 answers."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="what there is, and why")
    add = commands.add_parser("add", help="add an image with the fp32 model's answer")
    add.add_argument("image", type=Path)
    add.add_argument("--question", help="empty asks as the seed's command does")
    add.add_argument("--kind", default="added")
    update = commands.add_parser("update", help="answer images again, all or those named")
    update.add_argument("names", nargs="*")
    for one in (show, add, update):
        one.add_argument("--model", help="checkpoint folder (default: the embedded llava_tiny)")
    for one in (add, update):
        one.add_argument("--reason", required=True, help="why; it is written down")
        one.add_argument(
            "--draft",
            type=Path,
            metavar="PTE",
            help="let this program propose answers: same result, sooner for large models",
        )
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 shown or written, 2 not."""
    options = _parser().parse_args(arguments)
    if options.command != "show":
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            raise UsageError(
                "goldens are not changed in CI", got=f"CI={os.environ['CI']}", fix="run it by hand, and commit"
            )
        if len(options.reason.split()) < 2:
            raise UsageError("the reason says nothing", got=options.reason, expected="some words", fix="say why")
    checkpoint = open_checkpoint(options.model)
    folder = golden_folder(checkpoint)
    if options.command == "show":
        _show(checkpoint, load_golden(folder, checkpoint.sha256))
        return 0
    checkpoint.require_usable()
    with hushed():
        path = (_add if options.command == "add" else _update)(checkpoint, folder, options)
    print(f"written: {path}")
    return 0
