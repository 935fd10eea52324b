"""Faults of KV-cache, masks and threads: wounds in a program, and results as a faulty runtime would give (rows of FAULTS.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.faults.cache_rows import place_of, row_changed, sound_rows, with_rows
from tests.faults.judging import blamed, results_of
from verifier.artifact.plan import TensorValue
from verifier.artifact.program import open_artifact
from verifier.audit.caches import find_caches
from verifier.checks.registry import CHECKS
from verifier.core.types import Missing
from verifier.faults.surgery import program_of, write_scalar
from verifier.measures.evidence import Evidence, unasked
from verifier.measures.probes import CONFIGURATIONS, HISTORIES, PERTURBED, POISONS, SPLITS, Asked, CacheRows, PromptRows

pytestmark = pytest.mark.xdist_group("faults")
ROWS = "kvcache.rows,kvcache.mask"
CACHE_IDS = tuple(check.id for check in CHECKS if check.id.startswith(("kvcache.", "threads.")))


def _sdpa(path: Path, layer: int) -> tuple[int, tuple[int, ...]]:
    """Instruction and arguments of a layer's attention: query, keys, values, start, mask, dropout, causal, scale, out."""
    plan = open_artifact(path).plans["text_decoder"]
    steps = [step for step in plan.instructions if step.name == "llama::custom_sdpa.out"]
    return steps[layer].index, steps[layer].args


def _decoder(path: Path) -> tuple[object, object]:
    flat = program_of(path)
    return flat, next(plan for plan in flat.root.execution_plan if plan.name == "text_decoder")


def _write_argument(path: Path, instruction: int, place: int, value: int) -> None:
    """Let an argument of a kernel be another EValue."""
    flat, plan = _decoder(path)
    call = plan.chains[0].instructions[instruction].instr_args  # type: ignore[attr-defined]
    write_scalar(path, (flat.items(call, "KernelCall", "args") + 4 * place, "i"), value)  # type: ignore[attr-defined]


def _number(path: Path, wanted: int) -> int:
    """An EValue that holds an integer for good: no instruction writes it."""
    plan = open_artifact(path).plans["text_decoder"]
    written = {step.args[-1] for step in plan.instructions if step.args}
    return next(i for i, v in enumerate(plan.values) if type(v) is int and v == wanted and i not in written)


def test_30_causal_mask_lost_in_one_layer(victim: Path, micro_model: Path) -> None:
    """Attention of layer 0 sees the whole chunk: an earlier row of layer 1's cache changes with a later token."""
    _, args = _sdpa(victim, 0)
    flat, plan = _decoder(victim)
    record = plan.values[args[6]].val  # type: ignore[attr-defined]
    write_scalar(victim, flat.field(record, "Bool", "bool_val"), 0)  # type: ignore[attr-defined]
    step, module, message = blamed(victim, micro_model, ROWS)
    assert (step, module) == ("lowering", "text_decoder.layers.1.attention.v_cache")
    assert "before it, changed. An earlier token attends to a later one: check the mask of layer 0" in message


def test_34_mask_aligned_upper_left(victim: Path, micro_model: Path) -> None:
    """Attention of layer 0 takes every chunk as the first one: right in the first, blind to it from the second on."""
    instruction, _ = _sdpa(victim, 0)
    _write_argument(victim, instruction, 3, _number(victim, 0))
    step, module, message = blamed(victim, micro_model, ROWS)
    assert (step, module) == ("lowering", "text_decoder.layers.1.attention.v_cache")
    assert "Later tokens do not attend to it: check the mask of layer 0" in message


def test_36_cache_shares_memory_with_scratch(victim: Path, micro_model: Path) -> None:
    """A cache planned over a tensor of every call: found by its rows alone, and by the memory plan without a run."""
    artifact = open_artifact(victim)
    values = artifact.plans["text_decoder"].values
    cache = next(one for one in find_caches(artifact) if (one.kind, one.layer) == ("k", 1))
    kept = {one.value for one in find_caches(artifact)}
    scratch = [v for i, v in enumerate(values) if isinstance(v, TensorValue) and v.place and i not in kept]
    largest = max(scratch, key=lambda value: value.size_bytes)
    assert largest.place is not None
    flat, plan = _decoder(victim)
    place = plan.values[cache.value].val.allocation_info  # type: ignore[attr-defined]
    write_scalar(victim, flat.field(place, "AllocationDetails", "memory_offset_low"), largest.place[1])  # type: ignore[attr-defined]
    step, _, _ = blamed(victim, micro_model, ROWS)
    assert step in ("lowering", "kernel")
    step, _, message = blamed(victim, micro_model, "structure.lifetimes")
    assert step == "lowering"
    assert "share" in message


def test_rows_of_one_layer_written_to_one_place(victim: Path, micro_model: Path) -> None:
    """Layer 1 writes the keys of every chunk to position 0."""
    plan = open_artifact(victim).plans["text_decoder"]
    keys = next(c.value for c in find_caches(open_artifact(victim)) if (c.kind, c.layer) == ("k", 1))
    step = next(s for s in plan.instructions if s.name == "llama::update_cache.out" and s.args[1] == keys)
    _write_argument(victim, step.index, 2, _number(victim, 0))
    step_name, module, message = blamed(victim, micro_model, ROWS)
    assert (step_name, module) == ("lowering", "text_decoder.layers.1.attention.k_cache")
    assert "of the K cache of layer 1" in message


def _failed(check_id: str, broken: Evidence) -> set[str]:
    return {result.case for result in results_of(check_id, broken) if result.verdict == "fail"}


def test_clean_cache_and_threads_pass(gathered: Evidence) -> None:
    """The clean side of what follows."""
    for check_id in CACHE_IDS:
        assert {result.verdict for result in results_of(check_id, gathered)} == {"pass"}, check_id


def _with(gathered: Evidence, name: str, change: Callable[[Asked], Asked]) -> Evidence:
    cache = gathered.runtime.cache
    assert not isinstance(cache, Missing)
    changed = replace(cache, **{name: change(getattr(cache, name))})
    return replace(gathered, runtime=replace(gathered.runtime, cache=changed))


def _output(call: int, array: np.ndarray | None) -> Callable[[Asked], Asked]:
    """Another output of a call, or none."""

    def change(asked: Asked) -> Asked:
        outputs = {k: v for k, v in asked.result.outputs.items() if k != call}
        return replace(
            asked, result=replace(asked.result, outputs=outputs if array is None else outputs | {call: array})
        )

    return change


def _asked(gathered: Evidence, name: str) -> Asked:
    asked = getattr(gathered.runtime.cache, name)
    assert isinstance(asked, Asked)
    return asked


@pytest.mark.parametrize(
    ("name", "check_id", "case", "size"),
    [
        *(("chunks", "kvcache.chunks", case, 0.03) for case in (SPLITS[1], SPLITS[6])),
        *(("use", "kvcache.history", case, 1e-6) for case in HISTORIES),
        *(("poison", "kvcache.poison", case, 1e-6) for case in POISONS),
    ],
)
def test_other_logits_fail(gathered: Evidence, name: str, check_id: str, case: str, size: float) -> None:
    """Logits moved by three per cent in another split, by a bit in another history; a NaN; no answer at all."""
    asked = _asked(gathered, name)
    pair = [pair for pair in asked.pairs if pair.case == case][-1]
    clean = asked.result.outputs[pair.actual]
    noise = np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    poisoned = clean.copy()
    poisoned.flat[5] = np.nan
    for array in (clean + size * np.float32(np.sqrt(np.mean(clean**2))) * noise, poisoned, None):
        broken = _with(gathered, name, _output(pair.actual, array))
        assert _failed(check_id, broken) == {case}
        failed = next(r for r in results_of(check_id, broken) if r.verdict == "fail")
        assert failed.where is not None
        assert failed.where.index == (pair.position,)


def test_poison_that_was_not_set_proves_nothing(gathered: Evidence) -> None:
    """If the program does not answer from the cache that was set, it is an error and no pass."""
    call = _asked(gathered, "poison").marks["next"]
    other = _asked(gathered, "poison").result.outputs[call] * np.float32(1.1)
    use = _asked(gathered, "use").marks["next"]
    broken = _with(gathered, "use", _output(use, other))
    assert {result.verdict for result in results_of("kvcache.poison", broken)} == {"error"}


def test_positions_past_the_end_that_work_or_kill_fail(gathered: Evidence) -> None:
    """Accepted, or the end of the process; or what lies before the refused chunk is another afterwards."""
    asked = _asked(gathered, "capacity")
    limit = gathered.program.max_seq_len
    some = next(iter(asked.result.outputs.values()))
    for name, case in ((f"{limit} + 1", "one token beyond"), (f"575 + {limit - 574}", "chunks beyond")):
        call = asked.marks[name]
        errors = {k: v for k, v in asked.result.errors.items() if k != call}
        silent = replace(asked, result=replace(asked.result, errors=errors))
        accepted = _output(call, some)(silent)
        for changed in (silent, accepted):
            broken = _with(gathered, "capacity", lambda _old, changed=changed: changed)  # type: ignore[misc]
            assert _failed("kvcache.capacity", broken) == {case}
    pair = asked.pairs[-1]
    moved = asked.result.outputs[pair.actual] + np.float32(1e-4)
    assert _failed("kvcache.capacity", _with(gathered, "capacity", _output(pair.actual, moved))) == {
        "cache after an error"
    }
    chunks = _asked(gathered, "chunks")
    broken = _with(gathered, "chunks", _output(chunks.marks["last one"], None))
    assert _failed("kvcache.capacity", broken) == {"last position"}


def _turn(angle: float, row: int) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        half = array.shape[-1] // 2
        first, second = array[0, row, :, 0].copy(), array[0, row, :, half].copy()
        array[0, row, :, 0] = first * np.cos(angle) - second * np.sin(angle)
        array[0, row, :, half] = first * np.sin(angle) + second * np.cos(angle)

    return change


def _set(row: int, source: int) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[0, row] = array[0, source]

    return change


def test_sound_rows_pass(gathered: Evidence) -> None:
    """The clean side of the rows that are broken below."""
    sound = with_rows(gathered, lambda asked: asked)
    for check_id in ("kvcache.rows", "kvcache.mask"):
        assert {result.verdict for result in results_of(check_id, sound)} == {"pass"}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_measures_that_are_no_numbers_fail(gathered: Evidence, value: float) -> None:
    """Of the third cache in other chunks, of the key at the fifth position."""
    cache = gathered.runtime.cache
    assert not isinstance(cache, Missing) and isinstance(cache.rows, CacheRows)
    rows = cache.rows.prompts
    assert isinstance(rows, PromptRows)
    split = tuple(replace(one, sqnr_db=value) if n == 2 else one for n, one in enumerate(rows.split))  # type: ignore[type-var]
    apart = np.where(np.arange(len(rows.apart)) == 5, value, rows.apart)
    odd = replace(cache, rows=replace(cache.rows, prompts=replace(rows, split=split, apart=apart)))
    broken = replace(gathered, runtime=replace(gathered.runtime, cache=odd))
    assert _failed("kvcache.rows", broken) == {"other chunks", "rotation"}


def test_rows_that_are_not_their_tokens_fail(gathered: Evidence) -> None:
    """A key turned by a little too much, one not turned at all, a value of the neighbour, a row of other chunks."""
    key, value, deep = place_of("k", 0), place_of("v", 0), place_of("v", 3)
    cases = {
        ("rotation", 700): row_changed("repeated", key, _turn(0.001, 700)),
        ("rotation", 43): row_changed("repeated", key, _set(43, 42)),
        ("rotation", 12): row_changed("repeated", value, lambda array: array[0, 12].__iadd__(np.float32(1e-3))),
        ("own token", 101): row_changed("moved", value, _set(101, 100)),
        ("other chunks", 33): row_changed("split", deep, _set(33, 34)),
    }
    for (case, row), change in cases.items():
        broken = with_rows(gathered, change)
        failed = [result for result in results_of("kvcache.rows", broken) if result.verdict == "fail"]
        assert [result.case for result in failed] == [case]
        assert failed[0].where is not None
        assert failed[0].where.index == (row,)


def test_masks_that_see_too_much_or_too_little_fail(gathered: Evidence) -> None:
    """A row before the perturbed token moves; its own does not; none behind it does; one of layer 0 does."""
    first, third = place_of("v", 0), place_of("k", 2)
    clean = sound_rows(gathered.geometry.text.rope_theta)
    base = clean.result.further[clean.marks["unperturbed"], third]

    def behind(array: np.ndarray) -> None:
        array[0, 41:] = base[0, 41:]

    def own(array: np.ndarray) -> None:
        array[0, 40] = base[0, 40]

    def bump(row: int) -> Callable[[np.ndarray], None]:
        return lambda array: array[0, row].__iadd__(np.float32(1e-3))

    assert 40 in PERTURBED
    cases = {
        ("before it, changed", third, 7): bump(7),
        ("did not change. The row does not hold its own token", third, 40): own,
        ("no row from 41 to 63 of the", third, 41): behind,
        ("keys and values of layer 0 depend", first, 55): bump(55),
    }
    for (said, place, row), change in cases.items():
        broken = with_rows(gathered, row_changed("perturbed 40", place, change))
        failed = [result for result in results_of("kvcache.mask", broken) if result.verdict == "fail"]
        assert [result.case for result in failed] == ["second chunk"]
        assert said in failed[0].message
        assert failed[0].where is not None
        assert failed[0].where.index == (row,)


def test_caches_of_another_size_fail(gathered: Evidence) -> None:
    """One layer's cache too few, and a cache that is none."""
    cache = gathered.runtime.cache
    assert not isinstance(cache, Missing) and isinstance(cache.caches, tuple)
    for caches in (cache.caches[:-1], Missing("no cache", "program")):
        runtime = replace(gathered.runtime, cache=replace(cache, caches=caches))
        assert _failed("kvcache.memory", replace(gathered, runtime=runtime)) == {"program"}


def test_54_results_that_change_from_run_to_run_fail(gathered: Evidence) -> None:
    """One element of the seventh repetition is another: named as not deterministic, and only there."""
    threads = gathered.runtime.threads
    assert not isinstance(threads, Missing)
    for case in CONFIGURATIONS:
        mine = threads[case]
        call = mine.calls[min(6, len(mine.calls) - 1)][2]
        moved = mine.result.outputs[call].copy()
        moved.flat[9] = np.nextafter(moved.flat[9], np.float32(np.inf))
        changed = replace(mine, result=replace(mine.result, outputs=mine.result.outputs | {call: moved}))
        broken = replace(gathered, runtime=replace(gathered.runtime, threads=threads | {case: changed}))
        failed = [result for result in results_of("threads.repeats", broken) if result.verdict == "fail"]
        assert [result.case for result in failed] == [case]
        assert failed[0].message.startswith("not deterministic: ")
        assert "text_decoder of 15" in failed[0].message


def test_wrong_results_of_one_thread_count_fail(gathered: Evidence) -> None:
    """Always the same wrong numbers with many threads: no matter of chance, and told apart from it."""
    threads = gathered.runtime.threads
    assert not isinstance(threads, Missing)
    mine = threads[CONFIGURATIONS[2]]
    outputs = {call: np.roll(array, 1, -1) for call, array in mine.result.outputs.items()}
    changed = replace(mine, result=replace(mine.result, outputs=outputs))
    broken = replace(gathered, runtime=replace(gathered.runtime, threads=threads | {CONFIGURATIONS[2]: changed}))
    assert _failed("threads.repeats", broken) == set()
    assert _failed("threads.counts", broken) == {CONFIGURATIONS[2]}


@pytest.mark.parametrize("check_id", CACHE_IDS)
def test_nothing_asked_is_an_error(gathered: Evidence, check_id: str) -> None:
    """No probe, no pass."""
    broken = replace(gathered, runtime=replace(gathered.runtime, cache=unasked("it"), threads=unasked("it")))
    assert {result.verdict for result in results_of(check_id, broken)} == {"error"}


def test_surgery_writes_where_it_should(victim: Path) -> None:
    """An argument is changed, and nothing else of the program."""
    instruction, args = _sdpa(victim, 1)
    _write_argument(victim, instruction, 3, args[0])
    assert _sdpa(victim, 1)[1] == (*args[:3], args[0], *args[4:])
