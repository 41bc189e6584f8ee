"""The paper's equations against decimal arithmetic and closed forms."""

import contextlib
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import masks, sparsify
from lightning_signin.core.functional import factorize, scaling, sign_flips
from lightning_signin.metrics import SignFlips, mean_scaling
from tests import reference

BETAS = (1e-30, 1e-8, 1e-3, 1.0, 7.0, 1e8, 1e30)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def thetas(dtype: torch.dtype) -> Tensor:
    positive = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 60.0, 777.7, 1e4], dtype=torch.float64).to(dtype)
    return torch.cat([positive, -positive, torch.randn(50, dtype=torch.float64).to(dtype)])


@pytest.mark.parametrize("beta", BETAS)
def test_factorize_equals_decimal_arithmetic(beta):
    theta = thetas(torch.float64)
    expected = torch.tensor([reference.factorize(x, beta) for x in theta.tolist()], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(factorize(theta, beta), 1), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("beta", BETAS)
def test_factorize_solves_both_equations(beta):
    theta = thetas(torch.float64)
    m, w = factorize(theta, beta)
    torch.testing.assert_close(m * w, theta, rtol=1e-12, atol=0)
    # m and w are of the size √|θ| where θ is large: there m² − w² = β holds relative to |θ|.
    assert ((scaling(m, w) - beta).abs() <= 1e-12 * theta.abs().clamp(min=beta)).all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_factorize_product_is_theta_in_every_dtype(dtype, beta):
    theta = thetas(dtype)
    m, w = factorize(theta, beta)
    assert m.dtype == w.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert m.isfinite().all()
    assert w.isfinite().all()
    product = m * w
    if dtype.itemsize == 2:
        assert torch.equal(product.to(dtype), theta)
    torch.testing.assert_close(product, theta.to(m.dtype), rtol=4 * torch.finfo(m.dtype).eps, atol=0)


def test_factorize_gives_w_the_sign_of_theta():
    theta = torch.tensor([-1e4, -1e-6, 0.0, 1e-6, 1e4], dtype=torch.float64)
    m, w = factorize(theta, 1.0)
    assert torch.equal(w.sign(), theta.sign())
    assert (m > 0).all()
    assert torch.equal(factorize(-theta, 1.0)[1], -w)


@pytest.mark.parametrize("beta", [0, 0.0, -1.0, float("inf"), float("nan"), "1.0", None, True])
def test_factorize_refuses_a_beta_that_is_no_positive_number(beta):
    with pytest.raises(ValueError, match=r"`beta` must be .*above 0.*, got"):
        factorize(torch.ones(2), beta)


@pytest.mark.parametrize("beta", [1e-60, 1e60])
def test_factorize_loses_no_theta_to_a_beta_beyond_float32(beta):
    theta = torch.tensor([0.0, 1.0])
    with contextlib.suppress(ValueError):  # to refuse it is right, too
        m, w = factorize(theta, beta)
        torch.testing.assert_close(m * w, theta)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_factorize_refuses_integers(dtype):
    with pytest.raises(TypeError, match=f"`theta` must be floating-point, got {dtype}. Convert it first"):
        factorize(torch.ones(2, dtype=dtype), 1.0)


def test_scaling_loses_no_digits_when_factors_are_close():
    m, w = 1 + 2.0**-40, 1 - 2.0**-43
    exact = float(Fraction(m) ** 2 - Fraction(w) ** 2)
    value = scaling(torch.tensor([m], dtype=torch.float64), torch.tensor([w], dtype=torch.float64)).item()
    assert value == pytest.approx(exact, rel=1e-15, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaling_of_half_factors_is_float32(dtype):
    m, w = torch.tensor([300.0], dtype=dtype), torch.tensor([1.0], dtype=dtype)
    assert scaling(m, w).dtype == torch.float32
    assert scaling(m, w).item() == float(m) ** 2 - 1  # 300² is beyond float16


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float64])
def test_sign_flips_count_positive_to_negative_and_back(dtype):
    before, after = torch.randint(-1, 2, (2, 7, 9)).to(dtype)
    pairs = zip(before.flatten().tolist(), after.flatten().tolist(), strict=True)
    assert sign_flips(before, after) == sign_flips(after, before) == sum(x * y < 0 for x, y in pairs)


def test_sign_flips_ignore_zeros():
    signs_ = torch.tensor([-1.0, 1.0, -0.0])
    assert sign_flips(signs_, torch.zeros(3)) == sign_flips(torch.zeros(3), signs_) == 0


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_sgd_on_the_factors_follows_the_riemannian_flow(beta):
    lr, theta, gradient = 1e-4, torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    m, w = (nn.Parameter(factor) for factor in factorize(theta, beta))
    optimizer = torch.optim.SGD([m, w], lr=lr)
    (gradient * m * w).sum().backward()
    optimizer.step()
    after = (m * w).detach()
    expected = [reference.product_step(t, beta, g, lr) for t, g in zip(theta.tolist(), gradient.tolist(), strict=True)]
    torch.testing.assert_close(after, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    flow = -lr * (4 * theta**2 + beta**2).sqrt() * gradient
    assert ((after - theta - flow).abs() <= 1.01 * lr**2 * gradient**2 * theta.abs() + 1e-15).all()


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_flips_and_scaling_are_measured_on_active_entries(storage):
    net = sparsify(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double(), sparsity=0.7, storage=storage, beta=2.0)
    flips = SignFlips(net)
    assert mean_scaling(net) == pytest.approx(2.0)
    with torch.no_grad():
        net[0].parametrizations.weight.original1.neg_()  # w, and with it every sign
    active = {name: int(mask.sum()) for name, mask in masks(net).items()}
    assert sum(active.values()) == 15
    flips.update(net)
    assert flips.by_layer() == {"0.weight": {"start": 1.0}, "1.weight": {"start": 0.0}}
    assert flips.compute() == {"start": active["0.weight"] / 15}
    assert mean_scaling(sparsify(nn.Linear(4, 4), sparsity=0.5, parametrization="plain")) is None
