"""The first sentences of a failed run: the bytes are accused only where a number of the file was shown to be wrong."""

from __future__ import annotations

import pytest

from verifier.checks.registry import CHECKS
from verifier.report.headline import ACCUSED, HEADLINES, accused, accused_by, headline

WRONG_BYTES = "These bytes do not compute the checkpoint"


def _failed(*ids: str, step: str | None = None) -> list[dict[str, object]]:
    steps = {check.id: check.step for check in CHECKS}
    return [{"id": "structure.memory", "step": "lowering", "verdict": "pass"}] + [
        {"id": id, "step": step or steps.get(id, "mapping"), "verdict": "fail"} for id in ids
    ]


def test_every_check_accuses_somebody() -> None:
    """A new family has to say whom."""
    assert [check.id for check in CHECKS if accused_by(check.id) == "unknown"] == []
    assert {accused for _, accused in ACCUSED} <= {*HEADLINES, "answers"}


@pytest.mark.parametrize(
    "id",
    [
        "weights.tensors",
        "weights.derived",
        "structure.quantization",
        "layers.constants",
        "layers.graph",
        "logits.channels",
        "greedy.golden",
        "embedding.tokens",
        "kvcache.mask",
    ],
)
def test_a_wrong_number_accuses_the_bytes(id: str) -> None:
    """Of the file, or computed by it where every kernel is right."""
    assert headline(_failed(id)).startswith(WRONG_BYTES)


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("splice.tokens", "The prompt is not"),
        ("splice.positions", "The prompt is not"),
        ("preprocess.pixels", "The pixels"),
        ("preprocess.constants", "The pixels"),
        ("tokenizer.ids", "The tokenizer file"),
        ("structure.metadata", "The file tells runners wrong limits or special tokens"),
        ("structure.limits", "The file tells runners wrong limits or special tokens"),
        ("structure.signatures", "do not take and return what runners rely on"),
        ("structure.operators", "the runner lacks something"),
        ("structure.manifest", "not the bytes that the manifest describes"),
        ("structure.census", "other instructions"),
        ("mapping.activations", "The eager model"),
        ("layers.kernel", "The runtime does not compute what the file says"),
        ("threads.repeats", "The runtime does not compute what the file says"),
        ("kvcache.history", "The runtime does not compute what the file says"),
        ("device.host", "The device does not compute what the file says"),
        ("layers.ranges", "Quantization costs more"),
        ("budget.file", "costs more memory"),
        ("greedy.free", "The bytes may be right"),
    ],
)
def test_other_faults_have_headlines_of_their_own(id: str, said: str) -> None:
    """None of them says that the bytes are wrong."""
    assert said in headline(_failed(id))
    assert WRONG_BYTES not in headline(_failed(id))


def test_a_wrong_kernel_explains_what_is_computed_behind_it() -> None:
    """Captions that a wrong kernel spoils are no fault of the file."""
    checks = _failed("layers.kernel", "layers.graph", "logits.teacher_forced", "greedy.golden")
    assert accused(checks) == ("runtime",)


def test_a_wrong_graph_explains_what_is_computed_behind_it() -> None:
    """Every kernel was right before: caches that differ follow from the graph."""
    assert accused(_failed("layers.graph", "kvcache.history", "greedy.golden")) == ("bytes",)


def test_a_kernel_of_another_machine_is_the_devices() -> None:
    """Results of a foreign target carry its step."""
    assert accused(_failed("layers.kernel", step="device")) == ("device",)


def test_of_several_faults_the_most_severe_is_said_first() -> None:
    """And the others are named behind it."""
    said = headline(_failed("structure.metadata", "splice.tokens", "weights.tensors"))
    assert said == f"{WRONG_BYTES}. Do not ship them. Also wrong: the prompt, the metadata."


def test_what_shows_no_number_does_not_accuse_the_bytes() -> None:
    """A call that ends in an error and a block that is not located leave open what the bytes compute; a wrong number beside them does not."""
    failing = [check | {"accuses": "calls"} for check in _failed("embedding.tokens", "greedy.free")[1:]]
    unplaced = [check | {"accuses": "graph"} for check in _failed("layers.graph")[1:]]
    assert headline(failing).startswith("A call of the program ends in an error")
    assert headline(unplaced).startswith("This program has other instructions")
    assert headline([*unplaced, *_failed("weights.tensors")]).startswith(WRONG_BYTES)


def test_a_wrong_prompt_and_pixels_leave_the_bytes_alone() -> None:
    """Together, too."""
    said = headline(_failed("structure.metadata", "preprocess.pixels", "splice.tokens"))
    assert said.startswith("The prompt is not")
    assert said.endswith("Also wrong: the pixels, the metadata.")
