"""Products on the non-zeros equal those with the dense matrix, forward, backward and once more."""

import pytest
import torch
from torch.nn import functional as F

from lightning_signin.kernels.conv import Window, sparse_conv2d
from lightning_signin.kernels.linear import Whole, sparse_linear
from lightning_signin.kernels.pattern import Pattern, TwoWay
from lightning_signin.kernels.products import csr_product, features_product, rows_product, sampled_product_

CLOSE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-5}}
DTYPES = pytest.mark.parametrize("dtype", CLOSE)
# Kernel, stride, padding, dilation, groups of the channels.
CONVOLUTIONS = [(1, 1, 0, 1, 1), (1, 2, 0, 1, 1), (1, 1, 1, 1, 1), (1, 1, 0, 1, 4), (3, 1, 1, 1, 1), (3, 2, 1, 1, 2)]
CONVOLUTIONS += [(3, 1, 2, 2, 1), (2, 2, 0, 1, 1), (5, 3, 4, 1, 4)]


def whole_of(product):
    return Whole(product, lambda gradient: False)


def weight_on(mask, dtype):
    """The non-zeros, the function that makes the whole weight of them, and where they are."""
    values = torch.randn(int(mask.sum()), dtype=dtype, requires_grad=True)
    index = mask.flatten().nonzero()[:, 0]
    return values, lambda v: v.new_zeros(mask.numel()).index_copy(0, index, v).view(mask.shape), index


def linear(outputs=30, inputs=41, rows=5, dtype=torch.float64, density=0.2):
    values, whole, index = weight_on(torch.rand(outputs, inputs) < density, dtype)
    matrix = TwoWay(Pattern.of_index(index, outputs, inputs))
    dense = lambda x, v, b: F.linear(x, whole(v), b)  # noqa: E731
    x, bias = torch.randn(rows, inputs, dtype=dtype, requires_grad=True), torch.randn(outputs, dtype=dtype)
    return (lambda x, v, b: sparse_linear(x, v, b, matrix, whole_of(dense))), dense, (x, values, bias.requires_grad_())


def convolution(form, dtype=torch.float64, images=3, size=(9, 7)):
    kernel, stride, padding, dilation, groups = form
    mask = torch.rand(12, 8 // groups, kernel, kernel) < 0.3
    values, whole, index = weight_on(mask, dtype)
    matrix = TwoWay(Pattern.of_index(index, 12, mask[0].numel(), groups))
    window = Window(*((n, n) for n in (kernel, stride, padding, dilation)))
    dense = lambda x, v, b: F.conv2d(x, whole(v), b, stride, padding, dilation, groups)  # noqa: E731
    x, bias = torch.randn(images, 8, *size, dtype=dtype, requires_grad=True), torch.randn(12, dtype=dtype)
    return (
        (lambda x, v, b: sparse_conv2d(x, v, b, matrix, window, whole_of(dense))),
        dense,
        (x, values, bias.requires_grad_()),
    )


def check_equal(sparse, dense, inputs, dtype):
    out, expected = sparse(*inputs), dense(*inputs)
    torch.testing.assert_close(out, expected, **CLOSE[dtype])
    gradient = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(result, inputs, gradient) for result in (out, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **CLOSE[dtype])


@DTYPES
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 150, 300])
def test_linear_layer(rows, dtype):
    check_equal(*linear(rows=rows, dtype=dtype), dtype)


@DTYPES
def test_linear_layer_in_tiles(dtype):
    """Inputs of which one tile holds fewer rows than there are."""
    check_equal(*linear(outputs=8, inputs=9000, rows=70, dtype=dtype, density=0.01), dtype)


@DTYPES
@pytest.mark.parametrize("form", CONVOLUTIONS)
def test_convolution(form, dtype):
    check_equal(*convolution(form, dtype), dtype)


@pytest.mark.parametrize("size", [(30, 30), (4, 4)])
def test_images_alone_and_side_by_side(size):
    check_equal(*convolution((3, 1, 1, 1, 1), images=9, size=size), torch.float64)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("sizes", [(30, 41, 1), (1, 41, 5), (1, 1, 1), (30, 41, 40), None])
def test_output_can_be_changed_in_place(sizes, dtype):
    sparse, dense, inputs = convolution(CONVOLUTIONS[4], dtype) if sizes is None else linear(*sizes, dtype, 0.9)
    found, expected = (run(*inputs).relu_() for run in (sparse, dense))
    torch.testing.assert_close(found, expected, **CLOSE[dtype])
    for one, other in zip(*(torch.autograd.grad(out.sum(), inputs) for out in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, **CLOSE[dtype])


def test_shapes_of_inputs():
    sparse, dense, (x, values, bias) = linear(rows=12)
    for shape in ((41,), (2, 6, 41), (0, 41)):
        given = x.flatten()[: torch.Size(shape).numel()].reshape(shape)
        assert sparse(given, values, None).shape == dense(given, values, None).shape
    sparse, dense, (x, values, bias) = convolution((3, 1, 1, 1, 1))
    torch.testing.assert_close(sparse(x[0], values, bias), dense(x[0], values, bias))


@pytest.mark.parametrize("made", [lambda: linear(4, 6, 3), lambda: convolution((3, 2, 1, 1, 2), images=2, size=(4, 3))])
def test_gradients_can_be_differentiated(made):
    sparse, _, inputs = made()
    assert torch.autograd.gradcheck(sparse, inputs)
    assert torch.autograd.gradgradcheck(sparse, inputs)


@pytest.mark.parametrize("made", [lambda: linear(64, 200, 90, torch.float32), lambda: convolution(CONVOLUTIONS[4])])
def test_runs_are_equal_bit_for_bit_and_threads_up_to_rounding(made):
    sparse, _, inputs = made()

    def run(threads):
        torch.set_num_threads(threads)
        try:
            out = sparse(*inputs)
            return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]
        finally:
            torch.set_num_threads(1)

    first, again, wide = run(1), run(1), run(2)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for one, other in zip(first, wide, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("asked", range(3))
def test_only_what_is_asked_for_gets_a_gradient(asked):
    for sparse, dense, inputs in (linear(), convolution(CONVOLUTIONS[0])):
        given = [tensor.detach().requires_grad_(place == asked) for place, tensor in enumerate(inputs)]
        (one,), (other,) = (torch.autograd.grad(run(*given).sum(), given[asked]) for run in (sparse, dense))
        torch.testing.assert_close(one, other)


def test_pattern_goes_there_and_back():
    mask = torch.rand(7, 11) < 0.3
    mask[2] = False
    pattern = Pattern.of(mask)
    index = mask.flatten().nonzero()[:, 0]
    assert torch.equal(pattern.positions(), index.int())
    assert all(torch.equal(a, b) for a, b in zip(Pattern.of_index(index.int(), 7, 11)[:2], pattern[:2], strict=True))
    values = torch.randn(len(index))
    back, turned = TwoWay(pattern).transposed(values)
    whole = torch.zeros(77).index_copy(0, index, values).view(7, 11)
    assert torch.equal(torch.zeros(77).index_copy(0, back.positions().long(), turned).view(11, 7), whole.t())


@DTYPES
@pytest.mark.parametrize("rows", [2, 40])
def test_all_kernels_make_the_same_product(rows, dtype):
    mask = torch.rand(20, 30) < 0.3
    values, whole, _ = weight_on(mask, dtype)
    pattern, x = Pattern.of(mask), torch.randn(rows, 30, dtype=dtype)
    matrix = torch.sparse_csr_tensor(pattern.starts, pattern.columns, values.detach(), mask.shape)
    expected = F.linear(x, whole(values.detach()))
    for found in (
        rows_product(pattern, values.detach(), x),
        csr_product(matrix, x),
        features_product(pattern, values.detach(), x.t().contiguous()).t(),
    ):
        torch.testing.assert_close(found, expected, **CLOSE[dtype])


def test_sampled_product_is_added():
    mask = torch.rand(6, 5) < 0.5
    left, right, before = torch.randn(6, 11), torch.randn(5, 11), torch.randn(int(mask.sum()))
    out = before.clone()
    sampled_product_(out, Pattern.of(mask), left, right)
    torch.testing.assert_close(out, before + (left @ right.t())[mask])
