"""The script that compares the ways to compute a convolution: what it compares their outputs with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")

from scripts.tuning.algorithms import reference, shape_of, stride_of
from tests.support.fused import convolution
from tests.support.workloads import conv2d

pytestmark = pytest.mark.tvm


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 3, 2), (12, 7, 2), (6, 1, 1), (6, 1, 2)]
)
def test_the_reference_is_a_padded_convolution_with_what_is_behind_it(size, kernel, stride):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, size, size, 5)), rng.standard_normal((kernel, kernel, 5, 4))
    bias = rng.standard_normal((1, 1, 1, 4))
    y = conv2d(x.transpose(0, 3, 1, 2), w.transpose(3, 2, 0, 1), stride, kernel // 2).transpose(0, 2, 3, 1)
    other = rng.standard_normal(y.shape)
    np.testing.assert_allclose(reference([x, w, bias, other, y]), np.maximum(y + bias + other, 0), rtol=1e-12)


def test_a_convolution_is_named_by_its_shape():
    assert shape_of(convolution("bias", size=12, channels=4, out=16, stride=2)) == "12x12x4 -> 16, 3x3 / 2"
    assert [stride_of(56, 56), stride_of(56, 28), stride_of(55, 28)] == [1, 2, 2]
