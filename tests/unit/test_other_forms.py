"""Equal content in another form: transposed weights, leading ones, constants behind a reshape, RoPE as a table or as frequencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from verifier.artifact.storage import Span, Storage
from verifier.audit.assign import _bare, _sample, _sampled, _stored_shape, _unit
from verifier.audit.inventory import Constant
from verifier.backends.backend import Graph, GraphValue, Node
from verifier.backends.xnnpack.run import Xnnpack
from verifier.families.conventions import DECODER, ENCODER
from verifier.families.family import Family
from verifier.families.llava.text import rope_tables
from verifier.families.registry import open_checkpoint, open_family


@pytest.fixture(scope="module")
def family() -> Family:
    """llava_tiny."""
    return open_family(open_checkpoint())


def test_transposed_weight_is_like_its_parameter(tmp_path: Path) -> None:
    """A weight [K, N] is sampled where [N, K] is, and is not like another one."""
    weight = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "constants"
    path.write_bytes(weight.T.contiguous().numpy().tobytes())
    storage = Storage(path, (), {}, (), path.stat().st_size)
    value = GraphValue(0, "fp32", (300, 200), None, Span(0, path.stat().st_size), None)
    constant = Constant(ENCODER, 0, 0, "linear", value, transposed=True)
    assert _stored_shape(constant, 8) == (200, 300)
    stored = _unit(_sample(constant, storage, 8))
    assert float(stored @ _unit(_sampled(weight, constant))) == pytest.approx(1.0)
    assert abs(float(stored @ _unit(_sampled(weight.flip(0), constant)))) < 0.1


def test_leading_ones_are_no_other_shape() -> None:
    """Of what is added and of norms; the last dimension stays."""
    assert [_bare(shape) for shape in ((1, 577, 128), (1, 1, 128), (128,), (1,))] == [(577, 128), (128,), (128,), (1,)]


def _chain(kind: str, attributes: dict[str, object]) -> Graph:
    """A constant [4, 8] that goes through one node into a fully connected layer's weights."""
    dims = {1: (2, 8), 2: (4, 8), 3: (4, 8), 4: (2, 4)}
    constant = Span(0, 128)
    values = {id: GraphValue(id, "fp32", d, None, constant if id == 2 else None, None) for id, d in dims.items()}
    nodes = (
        Node(0, kind, (2,), 3, attributes, None),
        Node(1, "XNNFullyConnected", (1, 3, None), 4, {"flags": 0}, None),
    )
    return Graph(nodes, values, (1,), (4,))


@pytest.mark.parametrize(
    ("kind", "attributes", "transposed"),
    [
        ("XNNStaticReshape", {"new_shape": (4, 8)}, False),
        ("XNNStaticTranspose", {"perm": (1, 0)}, True),
        ("XNNStaticTranspose", {"perm": (0, 1)}, False),
    ],
)
def test_constant_has_the_role_of_what_uses_it_behind_a_move(
    kind: str, attributes: dict[str, object], transposed: bool
) -> None:
    """A reshape says nothing, a transposition turns a weight."""
    (use,) = Xnnpack.constants(_chain(kind, attributes), ())
    assert (use.role, use.transposed) == ("linear", transposed)


def test_constant_behind_what_computes_has_no_role() -> None:
    """A node that changes numbers is not looked through."""
    (use,) = Xnnpack.constants(_chain("XNNSquare", {}), ())
    assert use.role == "unknown"


def test_rope_tables_of_any_length_and_of_half_heads(family: Family) -> None:
    """Every row is expected, whatever the cache's length; a table that claims to be endless is not made."""
    text = family.checkpoint.geometry.text
    cosines, sines = rope_tables(text, max_context_len=1536)
    ((table, _),) = family.derived("rope", DECODER, (1536, text.head_dim), order=0)
    assert torch.equal(table, cosines)
    ((half, _),) = family.derived("rope", DECODER, (1536, text.head_dim // 2), order=1)
    assert torch.equal(half, sines[:, : text.head_dim // 2])
    assert family.derived("rope", DECODER, (1 << 40, text.head_dim), order=0) == []


def test_inverse_frequencies_are_those_of_the_table(family: Family) -> None:
    """The angle of each pair of channels from one position to the next."""
    text = family.checkpoint.geometry.text
    ((frequencies, _),) = family.derived("frequencies", DECODER, (1, text.head_dim // 2), order=0)
    cosines, _ = rope_tables(text, max_context_len=2)
    assert np.allclose(torch.cos(frequencies), cosines[1, : text.head_dim // 2], atol=1e-7)


def test_factors_are_told_apart_by_their_number(family: Family) -> None:
    """The tower's and the decoder's own, each once."""
    geometry = family.checkpoint.geometry
    tower = [float(value) for value, _ in family.derived("factor", ENCODER, (), order=0)]
    decoder = [float(value) for value, _ in family.derived("factor", DECODER, (1,), order=0)]
    assert tower == pytest.approx(
        [1.702, 1 / 255, (128 / geometry.vision.heads) ** -0.5, (128 / geometry.vision.heads) ** -0.25]
    )
    assert decoder == pytest.approx([geometry.text.head_dim**-0.5, geometry.text.head_dim**-0.25, 1.0])
