"""A contained work-around for ExecuTorch 1.5's partitioner: linear time, and one copy of the weights.

`_create_partitions_in_graph_module` takes one delegate after the other out of a method's graph. LLaVA-1.5-7B's decoder has
more than five hundred, and for each of them upstream
- sorts the whole graph and compiles it to Python again, although only the last version is ever run;
- formats the whole program for a debug message that nobody reads (an f-string inside `logging.debug`).
Both are done once, after the last delegate. The sorting itself stays, since its order is the order of the instructions.

Every delegate's program is deep-copied before it is packed, weights and all: 6.5 GB of int8 twice. XNNPACK's passes make new
tensors and change none, so copies share them here. And `LoweredBackendModule` keeps the program that it was made from, for
ETRecord, and with it every weight that the delegate has packed; storage of at least `RELEASED_BYTES` is given back as soon as its delegate
is in its place and nothing else in the program uses it. An ETRecord cannot be made of such a program.

Nothing changes in the bytes of the result (`tests/gate/test_export.py`); where upstream's names are gone, nothing is done.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from verifier.core import upstream
from verifier.core.errors import UpstreamError

RELEASED_BYTES = 1 << 10
"""Low enough for the weights of the models that tests compare byte by byte."""


@contextmanager
def replaced(*attributes: tuple[Any, str, Any]) -> Iterator[None]:
    """Set attributes (owner, name, value) inside the block and restore them after it."""
    saved = [(owner, name, getattr(owner, name)) for owner, name, _ in attributes]
    try:
        for owner, name, value in attributes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in saved:
            setattr(owner, name, value)


def _sorted_only(legalize: Callable[[Any], Any], graph_module: Any) -> Callable[[Any], Any]:
    """Upstream's sorting of `graph_module` without its compilation; of any other module, as it is."""

    def lean_legalize(given: Any) -> Any:
        if given is not graph_module:
            return legalize(given)
        with replaced((type(given), "recompile", lambda _self: None)):
            return legalize(given)

    return lean_legalize


def _tensors(program: Any) -> Iterator[Any]:
    from torch import Tensor

    for held in (program.state_dict, program.constants):
        yield from (tensor for tensor in held.values() if isinstance(tensor, Tensor))


def _shared_copy(program: Any, *_rest: Any) -> Any:
    """A deep copy of a program, but for its tensors."""
    return copy.deepcopy(program, {id(tensor): tensor for tensor in _tensors(program)})


def release(program: Any, *, but: Any) -> int:
    """Give back the storage of a program's tensors from `RELEASED_BYTES` on, except what the program `but` still uses; returns the bytes."""
    used = {tensor.untyped_storage().data_ptr() for tensor in _tensors(but)}
    released = 0
    for tensor in _tensors(program):
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()
        if size_bytes >= RELEASED_BYTES and storage.resizable() and storage.data_ptr() not in used:
            storage.resize_(0)
            released += size_bytes
    return released


def _inserting(insert: Callable[..., Any]) -> Callable[..., Any]:
    """Upstream's insertion of a delegate, after which its program has let go of the delegate's weights."""

    def lean_insert(submodule_program: Any, owning_program: Any, *rest: Any) -> Any:
        made = insert(submodule_program, owning_program, *rest)
        release(submodule_program, but=owning_program)
        return made

    return lean_insert


@contextmanager
def lean_partitioning() -> Iterator[None]:
    """Partition in linear time and memory inside the block. Programs that are lowered in it are used up."""
    try:
        api, lowered = upstream.PARTITIONING.resolve(), upstream.LOWERED_MODULES.resolve()
        backend = upstream.XNNPACK_BACKEND.resolve()
    except UpstreamError:
        yield
        return
    from torch.fx import GraphModule

    partition, insert = (getattr(api, name) for name in upstream.PARTITIONING.uses)
    legalize = lowered.legalize_graph

    def lean_partition(graph_module: Any, *rest: Any) -> Any:
        with replaced(
            (lowered, "legalize_graph", _sorted_only(legalize, graph_module)),
            (GraphModule, "__str__", lambda self: type(self).__name__),
        ):
            made = partition(graph_module, *rest)
        graph_module.recompile()
        return made

    with replaced(
        (api, "_create_partitions_in_graph_module", lean_partition),
        (api, "_insert_lowered_submodule", _inserting(insert)),
        (backend, "copy_exported_program_for_preprocess", staticmethod(_shared_copy)),
    ):
        yield
