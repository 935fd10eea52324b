"""A contained work-around for ExecuTorch 1.5's partitioner: linear time, and weights that are let go once they are packed.

`_partition_and_lower_one_graph_module` takes one delegate after the other out of a method's graph. LLaVA-1.5-7B's decoder has
more than five hundred, and for each of them upstream
- sorts the whole graph and compiles it to Python again, although only the last version is ever run;
- verifies the whole program again (`ExportedProgram._validate`);
- formats the whole program for a debug message that nobody reads (an f-string inside `logging.debug`).
All three are done once, after the last delegate. The sorting itself stays, since its order is the order of the instructions.

`LoweredBackendModule` also keeps the program that it was made from, for ETRecord, and with it every weight that the delegate has
packed: 6.5 GB of int8 beside 3.3 GB of packed int4, and a copy of both in the garbage. Here storage of at least `LARGE_BYTES` is
given back as soon as its delegate is made and nothing else in the program uses it. An ETRecord cannot be made of such a program.

Nothing changes in the bytes of the result (`tests/gate/test_export.py`); where upstream's names are gone, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LARGE_BYTES = 1 << 20


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


def release(program: Any, *, but: Any = None) -> int:
    """Give back the storage of a program's large tensors, except what the program `but` still uses; returns the bytes."""
    used = {tensor.untyped_storage().data_ptr() for tensor in _tensors(but)} if but is not None else set()
    released = 0
    for tensor in _tensors(program):
        storage = tensor.untyped_storage()
        size_bytes = storage.nbytes()
        if size_bytes >= LARGE_BYTES and storage.resizable() and storage.data_ptr() not in used:
            storage.resize_(0)
            released += size_bytes
    return released


def _packing(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """The backend's own packing; it is given a copy of the program, which nobody wants afterwards."""

    def lean_preprocess(program: Any, specs: Any) -> Any:
        made = preprocess(program, specs)
        release(program)
        return made

    return lean_preprocess


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
        from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
        from executorch.exir import lowered_backend_module
        from executorch.exir.backend import backend_api
        from torch.export import ExportedProgram
        from torch.fx import GraphModule

        partition = backend_api._partition_and_lower_one_graph_module
        insert, preprocess = backend_api._insert_lowered_submodule, XnnpackBackend.preprocess
        legalize = lowered_backend_module.legalize_graph
    except (ImportError, AttributeError):
        yield
        return

    def lean_partition(graph_module: Any, result: Any, program: Any, is_submodule: bool) -> Any:
        validate: Any = ExportedProgram._validate
        with replaced(
            (lowered_backend_module, "legalize_graph", _sorted_only(legalize, graph_module)),
            (ExportedProgram, "_validate", lambda self: None if self is program else validate(self)),
            (GraphModule, "__str__", lambda self: type(self).__name__),
        ):
            made = partition(graph_module, result, program, is_submodule)
        made.recompile()
        program._validate()
        return made

    with replaced(
        (backend_api, "_partition_and_lower_one_graph_module", lean_partition),
        (backend_api, "_insert_lowered_submodule", _inserting(insert)),
        (XnnpackBackend, "preprocess", staticmethod(_packing(preprocess))),
    ):
        yield
