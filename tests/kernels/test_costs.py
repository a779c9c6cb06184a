"""The arithmetic of costs against counting."""

import numpy as np
import pytest

from zfu_kernels.costs import Shape, tile_map, useful_share


def visible(length, window):
    position = np.arange(length)
    distance = position[:, None] - position
    return (distance >= 0) & (distance < (length if window is None else window))


@pytest.mark.parametrize("window", [None, 1, 5, 16, 40, 99])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_pairs_and_tiles_are_those_of_the_mask(length, window):
    mask = visible(length, window)
    assert Shape(1, 1, 1, length, 8, window).pairs == mask.sum()
    tiles = tile_map(length, window, 8, 4)
    for r in range(tiles.shape[0]):
        for c in range(tiles.shape[1]):
            inside = mask[8 * r : 8 * r + 8, 4 * c : 4 * c + 4]
            assert tiles[r, c] == int(inside.any()) + int(inside.all())
    assert 0 < useful_share(length, window, 8, 4) <= 1


def test_flops_and_bytes_of_a_call():
    shape = Shape(B=2, H=4, Hkv=2, T=100, D=8, window=10)
    assert shape.flops("sigmoid", "forward") == 4 * 8 * visible(100, 10).sum() * 2 * 4
    assert shape.flops("sigmoid", "backward") == 2.5 * shape.flops("sigmoid", "forward")
    assert shape.bytes("sigmoid", "forward") == 2 * (2 * 4 + 2 * 2) * 2 * 100 * 8
    # Per pair, elastic over softmax: 9 products to 7.
    total = {
        name: sum(shape.flops(name, which) for which in ("forward", "backward")) for name in ("elastic", "softmax")
    }
    assert total["elastic"] / total["softmax"] == pytest.approx(9 / 7)
    assert shape.seconds("sigmoid", "forward", 1e12, 1e3) == shape.bytes("sigmoid", "forward") / 1e3
