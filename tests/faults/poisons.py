"""What poisons the evidence of each check: NaN, infinity, a wrong shape, and nothing, in the very field that it looks at.

A new check adds a row to `POISONS`: for one that looks at arrays, `arrays(change)`, where `change` applies a function to them; for others, a function
of the evidence for each kind, or a sentence that says why the kind cannot occur.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.faults.cache_rows import with_rows
from tests.support import EMBEDDED_PTE
from verifier.artifact.program import Artifact, open_artifact
from verifier.artifact.storage import Span
from verifier.backends.backend import Graph
from verifier.backends.calls import census_of
from verifier.backends.quantization import PerTensor
from verifier.core.types import Missing
from verifier.families.pixels.processor import find_processor
from verifier.golden.records import Budget, Expectation
from verifier.ladder.counterparts import counterpart
from verifier.ladder.records import NonFinite
from verifier.measures.evidence import Case, Evidence
from verifier.measures.pictures import DifferingPixels, FramedPixels
from verifier.measures.probes import Asked, Speed
from verifier.measures.program_facts import program_facts
from verifier.measures.prompts import TemplatePrompt
from verifier.measures.use import UseEvidence
from verifier.runner.official import Told
from verifier.runner.protocol import Result

ANSWERED = ("second turn", "reset", "A, B, A", "text only", "stopped", "to the end of the cache", "max_new_tokens 1")
Array = Any
Poison = Callable[[Evidence], Evidence] | str
"""What breaks the evidence, or why it cannot be broken so."""
ArrayChange = Callable[[Evidence, Callable[[Array], Array | None]], Evidence]
KINDS = ("nan", "inf", "shape", "nothing")


@dataclass(frozen=True)
class Poisons:
    """The four kinds. `only` chooses the cases that look at what was poisoned."""

    nan: Poison
    inf: Poison
    shape: Poison
    nothing: Poison
    only: Callable[[str], bool] = lambda _case: True


def arrays(change: ArrayChange, *, only: Callable[[str], bool] = lambda _case: True) -> Poisons:
    """One element, the last axis one shorter, and no array at all."""

    def first(value: float) -> Callable[[Array], Array]:
        def put(array: Array) -> Array:
            made = np.array(array)
            made.reshape(-1)[made.size // 2] = value
            return made

        return put

    return Poisons(
        lambda e: change(e, first(math.nan)),
        lambda e: change(e, first(math.inf)),
        lambda e: change(e, lambda array: array[..., :-1]),
        lambda e: change(e, lambda _array: None),
        only,
    )


INTEGERS = "the file stores integers here"
NAMES = "names are compared, no numbers"
MEASURED = "tests/unit/test_measures.py feeds the measuring itself"
NOTHING = Missing("no check asked for it", "unasked")
IDS = "ids of tokens are integers"
COUNTS = "instructions are counted, no numbers are compared"


def _cases(e: Evidence, change: Callable[[Case], Case]) -> Evidence:
    """Two golden images are enough."""
    cases = tuple(change(case) for case in e.cases[:2])
    return replace(e, cases=cases, subjects=replace(e.subjects, images=e.subjects.images[:2]))


def _logits(e: Evidence, f: Any) -> Evidence:
    return _cases(e, lambda case: replace(case, logits=f(case.logits)))


def _vision(e: Evidence, f: Any) -> Evidence:
    return _cases(e, lambda case: replace(case, vision=f(case.vision)))


def _runtime(e: Evidence, **fields: Any) -> Evidence:
    return replace(e, runtime=replace(e.runtime, **fields))


def _free(e: Evidence, f: Any) -> Evidence:
    return _runtime(e, free={name: f(logits) for name, logits in e.runtime.free.items()})


def _full(e: Evidence, f: Any) -> Evidence:
    return _runtime(e, full=replace(e.runtime.full, logits=f(e.runtime.full.logits)))


def _user(e: Evidence, f: Any) -> Evidence:
    case = e.cases[0]
    wanted = Expectation("m", "p", 768, "an image", case.sample.golden.text[:3], "made up")
    return replace(e, expectation=wanted, user_case=replace(case, logits=f(case.logits)))


def _eyes(e: Evidence, *, prices: dict[str, float] | None = None, **fields: Any) -> Evidence:
    """Android's are named."""
    eyes: Any = e.eyes
    if "pictures" in fields:
        fields = {"apps": {name: replace(app, **fields) for name, app in eyes.apps.items()}}
    subjects = replace(e.subjects, apps=("android",))
    return replace(e, eyes=replace(eyes, **fields), subjects=subjects, prices=prices or {})


def _measured(name: str, **fields: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, **{name: replace(getattr(e, name), **fields)})


def _unmeasured(name: str) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, **{name: NOTHING})  # type: ignore[arg-type]


def _use(**fields: Any) -> Callable[[Evidence], Evidence]:
    return _measured("use", **fields)


def _cut(told: Told, pieces: int | None) -> Told:
    return replace(told, said=tuple(replace(said, pieces=said.pieces[:pieces]) for said in told.said))


def _fed(*, pieces: int) -> Callable[[Evidence], Evidence]:
    """Answers without their end, or without any piece."""

    def made(e: Evidence) -> Evidence:
        assert isinstance(e.use, UseEvidence)
        fed = {name: replace(o, ids=_cut(o.ids, pieces), text=_cut(o.text, pieces)) for name, o in e.use.fed.items()}
        return replace(e, use=replace(e.use, fed=fed))

    return made


def _situated(e: Evidence) -> Evidence:
    assert isinstance(e.use, UseEvidence)
    made = {name: replace(one, told=_cut(one.told, -1)) for name, one in e.use.situations.items()}
    return replace(e, use=replace(e.use, situations=made))


def _mapping(**fields: Any) -> Callable[[Evidence], Evidence]:
    """In the last activation, so that the others are sound."""

    def made(e: Evidence) -> Evidence:
        found = {image: (*errors[:-1], replace(errors[-1], **fields)) for image, errors in e.mapping.items()}
        return replace(e, mapping=found)

    return made


def _mapped(outputs: dict[Any, Array], f: Any) -> dict[Any, Array]:
    made = {key: f(array) for key, array in outputs.items()}
    return {key: array for key, array in made.items() if array is not None}


def _asked(asked: Asked, f: Any) -> Asked:
    """Every second output, so that two that are compared are not poisoned alike."""
    odd = {pair.actual for pair in asked.pairs} - {pair.expected for pair in asked.pairs}
    outputs = {call: x for call, x in asked.result.outputs.items() if call not in odd}
    outputs |= _mapped({call: x for call, x in asked.result.outputs.items() if call in odd}, f)
    result = replace(asked.result, outputs=outputs, further=_mapped(asked.result.further, f))
    return replace(asked, result=result)


def _cache(*names: str) -> ArrayChange:
    def change(e: Evidence, f: Any) -> Evidence:
        assert not isinstance(e.runtime.cache, Missing)
        return _runtime(
            e, cache=replace(e.runtime.cache, **{name: _asked(getattr(e.runtime.cache, name), f) for name in names})
        )

    return change


def _rows(e: Evidence, f: Any) -> Evidence:
    """Rows of all caches, before they are measured."""
    return with_rows(e, lambda asked: _asked(asked, f))


def _last_position(e: Evidence, f: Any) -> Evidence:
    """What a refused call leaves, and the logits at the last position."""
    made = _cache("capacity")(e, f)
    assert not isinstance(made.runtime.cache, Missing)
    chunks = made.runtime.cache.chunks
    assert isinstance(chunks, Asked)
    last = chunks.marks["last one"]
    outputs = {call: x for call, x in chunks.result.outputs.items() if call != last}
    outputs |= _mapped({last: chunks.result.outputs[last]}, f)
    chunks = replace(chunks, result=replace(chunks.result, outputs=outputs))
    return _runtime(made, cache=replace(made.runtime.cache, chunks=chunks))


def _threads(e: Evidence, f: Any) -> Evidence:
    assert not isinstance(e.runtime.threads, Missing)
    made = {
        name: replace(one, result=replace(one.result, outputs=_mapped(one.result.outputs, f)))
        for name, one in e.runtime.threads.items()
    }
    return _runtime(e, threads=made)


def _thread_counts(e: Evidence, f: Any) -> Evidence:
    """All configurations but the one that the others are held against."""
    assert not isinstance(e.runtime.threads, Missing)
    return _runtime(e, threads={**_threads(e, f).runtime.threads, "1 thread": e.runtime.threads["1 thread"]})


def _counterparts(e: Evidence, f: Any) -> Evidence:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = tuple(
        counterpart(method, at, there=f(x), here=x) for at, method in enumerate(("vision_encoder", "text_decoder"))
    )
    return _layers(e, counterparts=made)


def _layers(e: Evidence, **fields: Any) -> Evidence:
    assert not isinstance(e.layers, Missing)
    return replace(e, layers=replace(e.layers, **fields))


def _replay(e: Evidence, **fields: Any) -> Evidence:
    assert not isinstance(e.layers, Missing)
    return _layers(e, replay=replace(e.layers.replay, **fields))


def _records(name: str) -> Poisons:
    """`Compared` records: what is wrong in one of a block is wrong in all of them."""

    def change(**fields: Any) -> Callable[[Evidence], Evidence]:
        def made(e: Evidence) -> Evidence:
            assert not isinstance(e.layers, Missing)
            return _replay(e, **{name: tuple(replace(r, **fields) for r in getattr(e.layers.replay, name))})

        return made

    return Poisons(
        change(worst=math.nan, sqnr_db=math.nan),
        change(worst=math.inf, sqnr_db=-math.inf),
        change(reason="float32 [1], the program's bytes give float32 [2]", sqnr_db=math.nan),
        lambda e: _replay(e, **{name: ()}),
    )


def _blocks(name: str) -> Poisons:
    """`BlockError` records; in the second of each block, so that the first is sound."""

    def change(**fields: Any) -> Callable[[Evidence], Evidence]:
        def made(e: Evidence) -> Evidence:
            found = []
            seen: set[str] = set()
            for error in getattr(e.layers, name):
                found.append(replace(error, **fields) if error.block in seen else error)
                seen.add(error.block)
            return _layers(e, **{name: tuple(found)})

        return made

    return Poisons(
        change(sqnr_db=math.nan),
        change(sqnr_db=math.inf),
        change(sqnr_db=math.nan, reason="shape [1], expected [2]"),
        lambda e: _layers(e, **{name: ()}),
    )


def _held(value: float) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        assert not isinstance(e.layers, Missing)
        odd = NonFinite(value, (0,), 1)
        return _replay(e, compared=tuple(replace(r, non_finite=odd) for r in e.layers.replay.compared))

    return made


def _clipped(value: float) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        assert not isinstance(e.layers, Missing)
        first, *others = e.layers.replay.ranges
        return _replay(e, ranges=(*others, replace(first, clipped=value)))

    return made


def _artifact(e: Evidence, change: Callable[[Artifact], Artifact]) -> Evidence:
    """The facts of the embedded program, changed before they were taken."""
    return replace(e, program=program_facts(change(open_artifact(EMBEDDED_PTE))))


def _methods(e: Evidence, name: str, **fields: Any) -> Evidence:
    def change(artifact: Artifact) -> Artifact:
        methods = artifact.methods
        return replace(artifact, methods=methods | {name: replace(methods[name], **fields)})

    return _artifact(e, change)


def _decoder_input(**fields: Any) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        first, *others = e.program.methods["text_decoder"].inputs
        return _methods(e, "text_decoder", inputs=(replace(first, **fields), *others))  # type: ignore[type-var]

    return made


def _length(value: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: _methods(e, "get_max_seq_len", outputs=() if value is None else (value,))


def _metadata(outputs: tuple[Any, ...]) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        methods = e.program.methods
        odd = {name: replace(m, outputs=outputs) for name, m in methods.items() if m.constant is not None}
        return replace(e, program=replace(e.program, methods=methods | odd))

    return made


def _silent(e: Evidence) -> Evidence:
    kept = {name: m for name, m in e.program.methods.items() if m.constant is None}
    return replace(e, program=replace(e.program, methods=kept))


def _scales(value: float) -> Callable[[Evidence], Evidence]:
    """Every int8 value of every delegate is given another scale each time."""

    def change(artifact: Artifact) -> Artifact:
        census_of(artifact)  # decodes all
        graphs: dict[Span, object] = {}
        for payload, graph in artifact.decoded.items():
            assert isinstance(graph, Graph)
            values = {
                id: replace(v, quantization=PerTensor(value + 0.0, 0)) if isinstance(v.quantization, PerTensor) else v
                for id, v in graph.values.items()
            }
            graphs[payload] = replace(graph, values=values)
        return replace(artifact, decoded=graphs)

    return lambda e: _artifact(e, change)


def _plans(e: Evidence, **fields: Any) -> Evidence:
    def change(artifact: Artifact) -> Artifact:
        return replace(artifact, plans={name: replace(plan, **fields) for name, plan in artifact.plans.items()})

    return _artifact(e, change)


def _vision_scalars(value: Any) -> Callable[[Evidence], Evidence]:
    def change(artifact: Artifact) -> Artifact:
        plan = artifact.plans["vision_encoder"]
        values = tuple(value if isinstance(v, float) else v for v in plan.values)
        return replace(artifact, plans=artifact.plans | {"vision_encoder": replace(plan, values=values)})

    return lambda e: _artifact(e, change)


def _operators(operators: tuple[str, ...]) -> Callable[[Evidence], Evidence]:
    return lambda e: _runtime(e, conversations=replace(e.runtime.conversations, operators=operators))


def _census(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        assert not isinstance(e.tolerances, Missing)
        census = {method: change(found) for method, found in e.tolerances.census.items()}
        return replace(e, tolerances=replace(e.tolerances, census=census))

    return made


def _manifest(sha256: Any) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        assert e.manifest is not None
        return replace(e, manifest=replace(e.manifest, pte_sha256=sha256))

    return made


def _audited(**fields: Any) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        assert not isinstance(e.audit, Missing)
        return replace(e, audit=replace(e.audit, constants=tuple(replace(c, **fields) for c in e.audit.constants)))

    return made


def _audit(**fields: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, audit=replace(e.audit, **fields))  # type: ignore[type-var]


def _framed(pixels: Any, kind: str) -> Any:
    assert isinstance(pixels, FramedPixels)
    if kind == "shape":
        return replace(pixels, size=(pixels.size[0] // 2, pixels.size[1]))
    return replace(pixels, worst_steps=math.nan if kind == "nan" else math.inf)


def _pictures(**fields: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, pictures=replace(e.pictures, **fields))


def _pixels(name: str) -> Poisons:
    """What was measured of every picture, the golden or the drawn ones."""

    def change(kind: str) -> Callable[[Evidence], Evidence]:
        def made(e: Evidence) -> Evidence:
            found = {case: _framed(pixels, kind) for case, pixels in getattr(e.pictures, name).items()}
            return _pictures(**{name: found})(e)

        return made

    return Poisons(change("nan"), change("inf"), change("shape"), _pictures(**{name: {}}))


def _own_pixels(kind: str) -> Callable[[Evidence], Evidence]:
    return lambda e: _pictures(user=_framed(next(iter(e.pictures.golden.values())), kind))(e)


def _files(**fields: Any) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        return _pictures(files={case: replace(read, **fields) for case, read in e.pictures.files.items()})(e)

    return made


def _shipped() -> Poisons:
    """Counts that are no numbers, files of which nothing was compared, or no file; tests/gate/test_tokenizer_files.py feeds the comparison itself."""

    def change(**fields: Any) -> Callable[[Evidence], Evidence]:
        def made(e: Evidence) -> Evidence:
            assert not isinstance(e.shipped, Missing)
            files = [
                replace(f, findings={name: replace(found, **fields) for name, found in f.findings.items()})
                for f in e.shipped.files
            ]
            return replace(e, shipped=replace(e.shipped, files=tuple(files)))

        return made

    return Poisons(
        change(different=math.nan),
        change(different=math.inf),
        change(compared=0),
        lambda e: replace(e, shipped=NOTHING),
    )


def _mute(e: Evidence) -> Evidence:
    """transformers gives no ids of the unusual prompts."""
    assert not isinstance(e.prompts, Missing)
    dialogues = {
        name: replace(one, reference=replace(one.reference, transformers=()))  # type: ignore[type-var]
        for name, one in e.prompts.dialogues.items()
    }
    return replace(e, prompts=replace(e.prompts, dialogues=dialogues))


def _cut_short(e: Evidence) -> Evidence:
    """The last call of each unusual prompt is lost."""
    assert not isinstance(e.prompts, Missing)
    dialogues = {name: replace(one, chunks=one.chunks[:-1]) for name, one in e.prompts.dialogues.items()}
    return replace(e, prompts=replace(e.prompts, dialogues=dialogues))


def _processor(text: str | None) -> Callable[[Evidence], Evidence]:
    def made(e: Evidence) -> Evidence:
        import tempfile
        from pathlib import Path

        folder = Path(tempfile.mkdtemp(prefix="poisoned-processor-"))
        if text is not None:
            (folder / "preprocessor_config.json").write_text(text)
        return _pictures(processor=find_processor(folder))(e)

    return made


def _calls(e: Evidence, change: Callable[[Any], Any]) -> Evidence:
    return _cases(e, lambda case: replace(case, calls=change(case.calls)))


def _speed(name: str, value: Any) -> Callable[[Evidence], Evidence]:
    return lambda e: _runtime(
        replace(e, budget={name: Budget(1.0, 2.0)}), speed=Speed(Result("ok", ""), **{name: value})
    )


def _spent(name: str) -> Poisons:
    """A figure of a run."""
    return Poisons(_speed(name, math.nan), _speed(name, math.inf), "a single number", _speed(name, None))


def _bytes(change: Callable[[Evidence, Any], Evidence], name: str) -> Poisons:
    budget = {name: Budget(1e12, 1e12)}
    return Poisons(
        lambda e: change(replace(e, budget=budget), math.nan),
        lambda e: change(replace(e, budget=budget), math.inf),
        "a single number",
        lambda e: replace(e, budget=None),
    )


def _header(e: Evidence, value: Any) -> Evidence:
    return replace(e, program=replace(e.program, file_bytes=value))


def _is_linear(case: str) -> bool:
    return case.startswith("text_decoder.layers") and case.rpartition(".")[0].endswith(
        ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
    )


def _gone(reason: str) -> Callable[[Evidence], Evidence]:
    return lambda e: replace(e, audit=Missing(reason, "verifier"))


def _one_shorter(e: Evidence) -> Evidence:
    """The same calls give another shape in the second repetition, and in the other process."""
    assert not isinstance(e.runtime.threads, Missing)
    made = {}
    for name, one in e.runtime.threads.items():
        calls = {call for repetition in one.calls[1:] or one.calls for call in repetition}
        outputs = {call: x[..., :-1] if call in calls else x for call, x in one.result.outputs.items()}
        made[name] = replace(one, result=replace(one.result, outputs=outputs))
    return _runtime(e, threads=made)


POISONS: dict[str, Poisons] = {
    "structure.signatures": Poisons(
        _decoder_input(sizes=(1, math.nan, 256)),
        _decoder_input(sizes=(1, math.inf, 256)),
        _decoder_input(sizes=(1, 768)),
        lambda e: _methods(e, "text_decoder", inputs=(), outputs=()),
    ),
    "structure.limits": Poisons(_length(math.nan), _length(math.inf), _decoder_input(sizes=(1, 768)), _length(None)),
    "structure.metadata": Poisons(_metadata((math.nan,)), _metadata((math.inf,)), _metadata((1, 2)), _silent),
    "structure.quantization": Poisons(
        _scales(math.nan), _scales(math.inf), "a scale is a single number", lambda e: _plans(e, instructions=())
    ),
    "structure.scalars": Poisons(
        _vision_scalars(math.nan),
        _vision_scalars(math.inf),
        _vision_scalars((1.0, 2.0)),
        lambda e: _plans(e, instructions=()),
    ),
    "structure.operators": Poisons(NAMES, NAMES, _operators(("aten::add.out",)), _operators(())),
    "structure.delegation": Poisons(
        COUNTS,
        COUNTS,
        lambda e: _methods(e, "text_decoder", operators={"aten::bmm.out": 1}),
        lambda e: replace(e, program=replace(e.program, methods={})),
    ),
    "structure.memory": Poisons(
        lambda e: _methods(e, "text_decoder", planned_bytes=math.nan),
        lambda e: _methods(e, "text_decoder", planned_bytes=math.inf),
        lambda e: _methods(e, "text_decoder", planned_bytes=1),
        lambda e: _methods(e, "text_decoder", planned_bytes=0),
    ),
    "structure.lifetimes": Poisons(
        INTEGERS, INTEGERS, lambda e: _plans(e, arenas_bytes=(0, 1)), lambda e: _plans(e, instructions=())
    ),
    "structure.census": Poisons(
        _census(lambda found: dict.fromkeys(found, math.nan)),
        _census(lambda found: dict.fromkeys(found, math.inf)),
        _census(lambda found: found | {"my::operator": 1}),
        _census(lambda _found: {}),
    ),
    "structure.manifest": Poisons(
        _manifest(math.nan), _manifest(math.inf), _manifest("12"), lambda e: replace(e, manifest=None)
    ),
    "mapping.activations": Poisons(
        _mapping(sqnr_db=math.nan),
        _mapping(sqnr_db=math.inf),
        _mapping(sqnr_db=math.nan, reason="shape [1], expected [2]"),
        lambda e: replace(e, mapping={}),
    ),
    "preprocess.constants": Poisons(
        _processor('{"image_mean": [NaN, NaN, NaN]}'),
        _processor('{"image_mean": [Infinity, 0, 0]}'),
        _processor('{"image_mean": [0.5]}'),
        _processor(None),
    ),
    "preprocess.pixels": _pixels("golden"),
    "preprocess.sizes": _pixels("drawn"),
    "preprocess.processor": Poisons(
        _processor('{"rescale_factor": NaN}'),
        _processor('{"rescale_factor": Infinity}'),
        _processor('{"rescale_factor": [0.5, 0.5]}'),
        _processor(None),
        only=lambda case: case == "rescale_factor",
    ),
    "preprocess.files": Poisons(
        _files(differing=(DifferingPixels("Hugging Face's loader", (1, 1), math.nan),)),  # type: ignore[arg-type]
        _files(differing=(DifferingPixels("Hugging Face's loader", (1, 1), math.inf),)),  # type: ignore[arg-type]
        _files(differing=()),
        _pictures(files={}),
    ),
    "preprocess.image": Poisons(
        _own_pixels("nan"),
        _own_pixels("inf"),
        _own_pixels("shape"),
        _pictures(user=Missing("no image was given", "verifier")),
    ),
    "tokenizer.loads": _shipped(),
    "tokenizer.texts": _shipped(),
    "tokenizer.pieces": _shipped(),
    "tokenizer.prompts": _shipped(),
    "tokenizer.answers": _shipped(),
    "splice.tokens": Poisons(
        "ids are integers that the driver made",
        "ids are integers that the driver made",
        lambda e: _calls(e, lambda calls: calls + calls),
        lambda e: _calls(e, lambda _calls: ()),
    ),
    "splice.positions": Poisons(
        "positions are integers that the driver made",
        "positions are integers that the driver made",
        lambda e: _calls(e, lambda calls: (*calls[:-1], calls[-3])),
        lambda e: _calls(e, lambda _calls: ()),
    ),
    "splice.template": Poisons(
        NAMES, NAMES, "texts have no shape", lambda e: replace(e, template=TemplatePrompt("USER: "))
    ),
    "splice.prompts": Poisons(NAMES, NAMES, _cut_short, _mute, only=lambda case: case != "two images"),
    "splice.capacity": Poisons(_length(math.nan), _length(math.inf), _length(4), lambda e: replace(e, cases=())),
    "weights.loaded": Poisons(
        _audited(likeness=math.nan),
        _audited(likeness=math.inf),
        "tensors of another shape are not paired: weights.tensors says so",
        _audited(likeness=None),
    ),
    "weights.tensors": Poisons(
        _audited(worst_steps=math.nan),
        _audited(worst_steps=math.inf),
        _audited(reason="its shape is [1], expected [2] as the recipe's"),
        _audit(constants=()),
        only=_is_linear,
    ),
    "weights.derived": Poisons(
        "tests/unit/test_audit.py feeds the comparison itself",
        "tests/unit/test_audit.py feeds the comparison itself",
        _audited(reason="its shape is [1], expected [2] as the recipe's"),
        _audit(constants=()),
    ),
    "weights.placement": Poisons(COUNTS, COUNTS, _gone("the audit failed"), _audit(held=0)),
    "device.instructions": Poisons(
        NAMES, NAMES, "instructions have no shape", lambda e: _runtime(e, conversations=Result("ok", ""))
    ),
    "layers.coverage": Poisons(
        COUNTS, COUNTS, lambda e: _replay(e, covered={}), lambda e: _replay(e, computing={}, covered={})
    ),
    "layers.finite": Poisons(
        _held(math.nan), _held(math.inf), "numbers are looked at one by one", lambda e: _replay(e, compared=())
    ),
    "layers.kernel": _records("compared"),
    "layers.constants": _records("constants"),
    "layers.graph": _blocks("blocks"),
    "layers.ranges": Poisons(
        _clipped(math.nan), _clipped(math.inf), "a share is a single number", lambda e: _replay(e, ranges=())
    ),
    "layers.vision": _blocks("blocks"),
    "layers.price": _blocks("tower"),
    "layers.profile": _blocks("profile"),
    "device.lengths": Poisons(
        COUNTS, COUNTS, lambda e: _replay(e, covered_in={}), lambda e: replace(e, layers=NOTHING)
    ),
    "device.host": replace(arrays(_counterparts), nothing=lambda e: _layers(e, counterparts=())),
    "kvcache.mask": arrays(_rows),
    "kvcache.rows": arrays(_rows),
    "kvcache.memory": Poisons(
        INTEGERS,
        INTEGERS,
        lambda e: _runtime(e, cache=replace(e.runtime.cache, caches=e.runtime.cache.caches[:1])),  # type: ignore[union-attr,index,type-var]
        lambda e: _runtime(e, cache=NOTHING),
    ),
    "kvcache.chunks": arrays(_cache("chunks")),
    "kvcache.capacity": arrays(_last_position, only=lambda case: case in ("last position", "cache after an error")),
    "kvcache.history": arrays(_cache("use")),
    "kvcache.poison": arrays(_cache("poison")),
    "threads.repeats": replace(arrays(_threads), shape=_one_shorter),
    "threads.counts": arrays(_thread_counts),
    "embedding.tokens": Poisons(
        _measured("vocabulary", worst=math.nan),
        _measured("vocabulary", worst=math.inf),
        MEASURED,
        _unmeasured("vocabulary"),
    ),
    "vision.embedding": arrays(_vision),
    "vision.channels": arrays(_vision),
    "logits.channels": Poisons(
        _measured("channels", gain_change=math.nan),
        _measured("channels", gain_change=math.inf),
        MEASURED,
        _unmeasured("channels"),
    ),
    "logits.teacher_forced": arrays(_logits),
    "logits.distribution": arrays(_logits),
    "greedy.golden": arrays(_logits),
    "greedy.free": arrays(_free),
    "greedy.images": arrays(_free),
    "greedy.limit": arrays(_full),
    "greedy.history": arrays(lambda e, f: _runtime(e, again=f(e.runtime.again))),
    "greedy.image": arrays(_user),
    "greedy.expected": arrays(_user),
    "use.answers": Poisons(IDS, IDS, _fed(pieces=-1), _use(fed={}, prompts=())),
    "use.tokens": Poisons(IDS, IDS, _fed(pieces=-1), _use(prompts=())),
    "use.text": Poisons(IDS, IDS, _fed(pieces=0), _use(fed={}, prompts=())),
    "use.turns": Poisons(IDS, IDS, _situated, _use(situations={}), only=lambda case: case in ANSWERED),
    "pixels.sizes": Poisons(
        "an output that is not finite becomes an error where the size is tried (verifier/gather/eyes.py)",
        "an output that is not finite becomes an error where the size is tried (verifier/gather/eyes.py)",
        lambda e: _eyes(e, tried=e.eyes.tried[1:]),  # type: ignore[union-attr,index]
        lambda e: replace(e, eyes=NOTHING),
    ),
    "pixels.kept": Poisons(
        lambda e: _eyes(e, prices={"pixels.kept": math.nan}),
        lambda e: _eyes(e, prices={"pixels.kept": math.inf}),
        lambda e: _eyes(e, apps={}),
        lambda e: _eyes(e, pictures={}),
    ),
    "budget.file": _bytes(_header, "file_bytes"),
    "budget.memory": _bytes(lambda e, value: _plans(e, arenas_bytes=(0, value)), "planned_bytes"),
    "budget.peak": _spent("peak_rss_bytes"),
    "budget.prefill": _spent("prefill_loops"),
    "budget.decode": _spent("decode_loops"),
}
