"""The rendered scenes: one caption each, and a held-out side that training never sees."""

from __future__ import annotations

import random

import numpy as np
import pytest

from golden.llava_tiny.make.scenes import (
    BACKGROUNDS,
    SIDE_PX,
    coverage,
    patch_roles,
    render,
    sample_scene,
    sample_split,
)


def test_caption_is_a_function_of_the_scene() -> None:
    """The same seed gives the same picture and sentence."""
    first, second = (sample_scene(random.Random(7)) for _ in range(2))
    assert first.caption == second.caption
    assert np.array_equal(np.asarray(render(first)), np.asarray(render(second)))


@pytest.mark.parametrize("held_out", [True, False])
def test_splits_share_no_caption(held_out: bool) -> None:
    """A combination of attributes lies on one side only."""
    rng = random.Random(0)
    assert all(sample_split(rng, held_out=held_out).is_held_out == held_out for _ in range(50))


def test_scenes_show_what_they_say() -> None:
    """The large object is named first and covers more; both are in the frame, none on the other."""
    rng = random.Random(1)
    for _ in range(40):
        scene = sample_scene(rng)
        shares = coverage(scene)
        assert scene.background in BACKGROUNDS
        assert render(scene).size == (scene.width, scene.height)
        assert max(scene.width, scene.height) == SIDE_PX
        if len(scene.objects) == 2:
            assert shares[0].sum() > shares[1].sum() > 300
            assert float((shares[0] * shares[1]).max()) == 0
            assert set(np.unique(patch_roles(shares))) == {0, 1, 2}
