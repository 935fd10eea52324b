"""The figures of docs/worked-example.md: one flipped nibble, seen by three tools (`python -m tests.bench.worked_example`)."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.support import CALLER, EMBEDDED_PTE, sqnr_db
from verifier.artifact.storage import Span
from verifier.core.progress import hushed
from verifier.families.answering import answer_samples, load_sample
from verifier.families.driver import Script, converse
from verifier.families.llava.definition import build_definition
from verifier.families.registry import open_checkpoint, open_family
from verifier.families.tokens.tokenizer import Tokenizer
from verifier.faults.surgery import change_bytes, find_constants
from verifier.gather.conversations import run_bundle
from verifier.gather.opening import Request
from verifier.golden.records import load_golden
from verifier.pipeline import verify
from verifier.runner.local import LocalRunner
from verifier.runner.protocol import Bundle


def main() -> None:
    """Flip a nibble in `layers.2.feed_forward.w1`, then ask an fp32 comparison, the caption, and the gate."""
    checkpoint = open_checkpoint()
    golden = load_golden(checkpoint.directory, checkpoint.sha256)
    tokenizer = Tokenizer(checkpoint.directory)
    wanted = next(image for image in golden.images if image.name == "square_0")
    with tempfile.TemporaryDirectory() as folder, hushed():
        broken = Path(shutil.copy(EMBEDDED_PTE, Path(folder) / "flipped.pte"))
        constant = find_constants(broken, checkpoint)["text_decoder.layers.2.feed_forward.w1.weight"]
        assert constant.value.constant is not None
        change_bytes(broken, Span(constant.value.constant.offset + 1000, 1), lambda byte: byte ^ np.uint8(4))
        sample = load_sample(wanted, tokenizer, open_family(checkpoint))
        expected = answer_samples(build_definition(checkpoint, max_len=768), [sample])[0].logits
        lines = []
        for name, pte in (("clean", EMBEDDED_PTE), ("flipped", broken)):
            script = Script(CALLER)
            talk = converse(script, image=sample.image, prompt=sample.prompt, answer=wanted.ids, patches=576)
            result = run_bundle(LocalRunner(), Bundle(pte, tuple(script.calls)))
            logits = np.concatenate([result.outputs[call].reshape(1, -1) for call in talk.logits])
            cosine = float((logits * expected).sum() / np.linalg.norm(logits) / np.linalg.norm(expected))
            text = tokenizer.decode([int(i) for i in logits.argmax(-1)])
            lines.append(
                f"{name}: logits against fp32 {sqnr_db(actual=logits, expected=expected):.2f} dB, cosine {cosine:.5f}, {text!r}"
            )
        run = verify(Request(broken, checks=("weights.*", "layers.*")))
    print(*lines, sep="\n")
    for result in run.results:
        if result.verdict == "fail":
            print(f"{result.id} [{result.case}]: {result.message}")


if __name__ == "__main__":
    main()
