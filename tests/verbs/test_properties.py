"""What holds for all shapes, densities, structures, dtypes and β, tried on random ones."""

import warnings

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_signin import masks, merge_, rescale_, sparsify
from lightning_signin.core.functional import factorize
from lightning_signin.core.storage import make_storage
from lightning_signin.masks.build import build_masks
from lightning_signin.masks.structures import parse_structure
from tests import reference

fixed = settings(derandomize=True, deadline=None, max_examples=60)
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12)) | st.tuples(*[st.integers(1, 5)] * 4)
SPARSITIES = st.decimals("0", "0.99", places=3).map(float)
STRUCTURES = st.sampled_from(["unstructured", "2:4", "1:4-cap", "3:8", "2x2-block", "constant-fan-in"])
DISTRIBUTIONS = st.sampled_from(["balanced", "erk", "uniform", "global"])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64])
BETAS = st.floats(1e-20, 1e20)
KINDS = st.sampled_from(["auto", "compact", "dense"])
FORMS = st.sampled_from(["sign-in", "plain"])
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LOST = st.sampled_from([float("inf"), -float("inf"), float("nan")])


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def chosen(weights, **options):
    """The masks; None where the structure does not fit or the budget is too small, which is an error in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return build_masks(weights, mask="magnitude", **options)
        except ValueError as error:
            if str(error).startswith(("`structure` does not fit", "`sparsity`=")):
                return None
            raise


@fixed
@given(st.lists(SHAPES, min_size=1, max_size=4), SPARSITIES, DISTRIBUTIONS, st.integers(0, 99))
def test_count_is_exact(shapes, sparsity, distribution, seed):
    weights = {f"{i}.weight": tensor(shape, torch.float32, seed + i) for i, shape in enumerate(shapes)}
    found = chosen(weights, sparsity=sparsity, distribution=distribution)
    size = sum(weight.numel() for weight in weights.values())
    assume(found is not None)
    assert sum(int(mask.sum()) for mask in found.values()) == reference.budget(str(sparsity), size)
    assert all(mask.any() for mask in found.values())


@fixed
@given(SHAPES, SPARSITIES, STRUCTURES, st.integers(0, 99))
def test_structure_takes_the_nearest_count_in_whole_units(shape, sparsity, structure, seed):
    found = chosen({"weight": tensor(shape, torch.float32, seed)}, sparsity=sparsity, structure=structure)
    assume(found is not None)
    pattern, kept = parse_structure(structure), int(found["weight"].sum())
    unit, most = pattern.unit(shape), pattern.capacity(shape)
    target = min(reference.budget(str(sparsity), found["weight"].numel()), most)
    assert kept % unit == 0
    assert abs(kept - target) <= unit / 2 or kept == unit


@fixed
@given(SHAPES, DTYPES, BETAS, st.integers(0, 99))
def test_product_of_the_factors_is_the_weight(shape, dtype, beta, seed):
    theta = tensor(shape, dtype, seed)
    theta.view(-1)[0] = 0
    m, w = factorize(theta, beta)
    assert m.isfinite().all()
    assert (m > 0).all()
    torch.testing.assert_close(m * w, theta.to(m.dtype), rtol=4 * torch.finfo(m.dtype).eps, atol=0)


@fixed
@given(st.lists(FINITE, min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_every_finite_weight_has_finite_factors(values, beta):
    theta = torch.tensor(values)
    m, w = factorize(theta, beta)
    assert m.isfinite().all()
    assert w.isfinite().all()
    torch.testing.assert_close(m * w, theta, rtol=4 * torch.finfo(theta.dtype).eps, atol=torch.finfo(theta.dtype).tiny)


@fixed
@given(SHAPES, DTYPES, LOST, st.integers(0, 99))
def test_weight_that_is_not_finite_has_no_factors(shape, dtype, lost, seed):
    theta = tensor(shape, dtype, seed)
    theta.view(-1)[seed % theta.numel()] = lost
    with pytest.raises(ValueError, match="`theta` must be finite, got inf or NaN"):
        factorize(theta, 1.0)


@fixed
@given(SHAPES, DTYPES, KINDS, st.integers(0, 99))
def test_storage_gives_back_the_masked_weight(shape, dtype, kind, seed):
    full, mask = tensor(shape, dtype, seed), tensor(shape, torch.float32, seed + 1) > 0
    storage = make_storage(kind, mask)
    assert torch.equal(storage.unpack(storage.pack(full)), full.where(mask, torch.zeros((), dtype=dtype)))
    assert storage.active == int(mask.sum())


NETS = {"inputs": st.integers(1, 9), "outputs": st.integers(1, 9), "sparsity": SPARSITIES, "beta": st.floats(1e-3, 1e3)}


@fixed
@given(**NETS, kind=KINDS, form=FORMS, wide=st.booleans(), seed=st.integers(0, 99))
def test_merge_changes_no_bit_and_a_rescale_only_rounding(inputs, outputs, sparsity, beta, kind, form, wide, seed):
    torch.manual_seed(seed)
    net = nn.Linear(inputs, outputs, dtype=torch.float64 if wide else torch.float32)
    assume(reference.budget(str(sparsity), inputs * outputs) > 0)
    sparsify(net, sparsity=sparsity, beta=beta, storage=kind, parametrization=form)
    kept, before = masks(net)["weight"], net.weight.detach().clone()
    assert not before[~kept].any()
    torch.testing.assert_close(rescale_(net).weight, before, rtol=8 * torch.finfo(before.dtype).eps, atol=0)
    saved, x = net.state_dict()["weight"].clone(), torch.randn(3, inputs, dtype=before.dtype)
    outcome = net(x)
    assert torch.equal(merge_(net).weight, saved)
    assert torch.equal(net(x), outcome)


@fixed
@given(**NETS, kind=KINDS, form=FORMS, lost=LOST, seed=st.integers(0, 99))
def test_kept_weight_that_is_not_finite_is_refused_and_a_masked_one_does_no_harm(
    inputs, outputs, sparsity, beta, kind, form, lost, seed
):
    torch.manual_seed(seed)
    options = {"sparsity": sparsity, "beta": beta, "storage": kind, "parametrization": form}
    net, plain = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs).requires_grad_(False)
    assume(reference.budget(str(sparsity), inputs * outputs) > 0)
    kept = masks(sparsify(net, **options))["weight"]
    before = net.state_dict()["weight"].clone()
    net.load_state_dict({**plain.state_dict(), "weight": plain.weight.where(kept, lost)})
    assert torch.equal(net.state_dict()["weight"] != 0, kept)
    net.load_state_dict({**plain.state_dict(), "weight": before})
    there = tuple(kept.nonzero()[seed % int(kept.sum())])
    plain.weight[there] = lost
    with pytest.raises(RuntimeError, match="weight has infinities or NaN among its kept values"):
        net.load_state_dict(plain.state_dict())
    torch.testing.assert_close(net.state_dict()["weight"], before)
    with pytest.raises(ValueError, match=r"weight has infinities or NaN.*or leave it dense with exclude=\['weight'\]"):
        sparsify(plain.requires_grad_(), mask={"weight": kept}, **options)
    assert type(plain) is nn.Linear


@fixed
@given(**NETS, kind=KINDS, lost=LOST, momentum=st.sampled_from(["keep", "carry", "clear"]), seed=st.integers(0, 99))
def test_rescale_leaves_what_is_not_finite_as_it_is(inputs, outputs, sparsity, beta, kind, lost, momentum, seed):
    torch.manual_seed(seed)
    net = nn.Linear(inputs, outputs)
    assume(reference.budget(str(sparsity), inputs * outputs) > 0)
    sparsify(net, sparsity=sparsity, beta=beta, storage=kind)
    m, w = net.parametrizations.weight.parameters()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    (net(torch.ones(2, inputs)) - 1).square().sum().backward()
    optimizer.step()
    there = m.detach().nonzero()[0].tolist()
    with torch.no_grad():
        m[tuple(there)] = w[tuple(there)] = lost
    before = net.weight.detach().clone()
    rescale_(net, optimizers=[optimizer], momentum=momentum)
    torch.testing.assert_close(net.weight.detach(), before, rtol=1e-5, atol=0, equal_nan=True)
    assert (~m.isfinite()).sum() == 1


@fixed
@given(**NETS, kind=KINDS, optimizer=st.sampled_from(["SGD", "AdamW"]))
def test_a_weight_of_zeros_trains_without_nan(inputs, outputs, sparsity, beta, kind, optimizer):
    net = nn.Linear(inputs, outputs)
    nn.init.zeros_(net.weight)
    assume(reference.budget(str(sparsity), inputs * outputs) > 0)
    sparsify(net, sparsity=sparsity, beta=beta, storage=kind)
    steps = getattr(torch.optim, optimizer)(net.parameters(), 1e-4)
    for _ in range(3):
        steps.zero_grad()
        (net(torch.ones(2, inputs)) - 1).square().sum().backward()
        steps.step()
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert not rescale_(net).weight[~masks(net)["weight"]].any()


@fixed
@given(st.sampled_from([float("inf"), -float("inf"), float("nan"), 0.0, -1.0]) | st.floats(max_value=0), DTYPES)
def test_beta_that_is_not_positive_and_finite_is_refused(beta, dtype):
    with pytest.raises(ValueError, match=r"`beta` must be .*above 0.*, got"):
        factorize(torch.ones(2, dtype=dtype), beta)
