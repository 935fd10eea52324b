"""Errors say what, got, expected, where and how to fix it."""

from __future__ import annotations

import pytest

from verifier.core.errors import ArtifactError, VerifierError
from verifier.core.types import Recipe


def test_error_text_has_every_part() -> None:
    """All five parts stand in the text, in reading order."""
    text = str(VerifierError("it broke", got=1, expected=2, where="here", fix="do this"))
    assert text.splitlines() == ["it broke", "  got: 1", "  expected: 2", "  where: here", "  to fix: do this"]


def test_error_text_leaves_out_what_is_unknown() -> None:
    """Absent parts leave no empty lines; zero is a value."""
    assert str(ArtifactError("it broke", got=0)) == "it broke\n  got: 0"


@pytest.mark.parametrize("fields", [{"group_size": 48}, {"group_size": 0}, {"max_seq_len": 1}, {"max_seq_len": 800}])
def test_recipe_refuses_what_cannot_be_exported(fields: dict[str, int]) -> None:
    """Group sizes that XNNPACK lacks, and lengths that contradict each other."""
    with pytest.raises(VerifierError, match="not usable"):
        Recipe(**fields)


def test_recipe_name_tells_numerics_apart_and_lengths_not() -> None:
    """Bands belong to numerics, which do not depend on the cache's length."""
    assert Recipe(max_seq_len=128).name == Recipe().name
    names = {
        Recipe(**f).name
        for f in (
            {},
            {"group_size": 64},
            {"quantizer": "hqq"},
            {"embedding_bits": 4},
            {"use_sdpa_with_kv_cache": False},
        )
    }
    assert len(names) == 5
