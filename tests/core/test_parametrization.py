"""Products on a mask: zeros that no optimizer moves, and two storages with one trajectory."""

import copy

import pytest
import torch
from timm.optim import Lion
from torch import nn, optim

from lightning_signin import effective_weights, masks, sparsify
from lightning_signin.core.compact import Compact
from lightning_signin.core.functional import scaling
from lightning_signin.core.masked import Masked, SignIn
from lightning_signin.core.storage import Dense
from lightning_signin.core.weights import sparse_weights

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "SGD with dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "Adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05, weight_decay=0.1),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
    "ASGD": lambda p: optim.ASGD(p, lr=0.05, weight_decay=0.1, t0=3),
    "Lion": lambda p: Lion(p, lr=0.01, weight_decay=0.1),
}
# Rprop's step length and Adamax's largest gradient (plus ε) are positive everywhere, and do not move a zero gradient.
NOT_A_GRADIENT = ("step_size", "exp_inf")
EVERY_OPTIMIZER = pytest.mark.parametrize("name", OPTIMIZERS)
BOTH = pytest.mark.parametrize("parametrization", ["sign-in", "plain"])


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def train(net: nn.Module, optimizer: optim.Optimizer, steps: int = 10) -> torch.Tensor:
    """The weights of both layers after every step, one row a step."""
    generator = torch.Generator().manual_seed(2)
    trajectory = []
    for _ in range(steps):
        x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (net(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()
        trajectory.append(torch.cat([net[0].weight.flatten(), net[2].weight.flatten()]).detach().clone())
    return torch.stack(trajectory)


@BOTH
@EVERY_OPTIMIZER
def test_dense_storage_stays_zero_after_ten_steps(name, parametrization):
    net = sparsify(network(), sparsity=0.7, storage="dense", parametrization=parametrization)
    start = effective_weights(net)
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer)
    for weight in sparse_weights(net).values():
        assert not torch.equal(weight.effective(), start[weight.name])
        masked = ~weight.storage.mask
        for factor in weight.factors:
            state = optimizer.state[factor]
            tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.shape == factor.shape}
            assert factor[masked].eq(0).all()
            assert all(v[masked].eq(0).all() for k, v in tensors.items() if k not in NOT_A_GRADIENT), list(tensors)


@BOTH
@EVERY_OPTIMIZER
def test_storages_train_alike(name, parametrization):
    trajectories = []
    for storage in ("compact", "dense"):
        net = sparsify(network(), sparsity=0.7, storage=storage, parametrization=parametrization)
        trajectories.append(train(net, OPTIMIZERS[name](net.parameters())))
    torch.testing.assert_close(*trajectories, rtol=1e-9, atol=1e-11)


def test_plain_equals_masking_after_every_step():
    plain, options = network(), {"lr": 0.1, "momentum": 0.9}
    net = sparsify(copy.deepcopy(plain), sparsity=0.7, parametrization="plain")
    kept = masks(net)

    def apply_masks(*_: object) -> None:
        with torch.no_grad():
            for name, mask in kept.items():
                plain.get_parameter(name).mul_(mask)

    apply_masks()
    optimizer = optim.SGD(plain.parameters(), **options)
    optimizer.register_step_post_hook(apply_masks)
    torch.testing.assert_close(train(net, optim.SGD(net.parameters(), **options)), train(plain, optimizer))


@pytest.mark.parametrize("storage", ["compact", "dense"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@BOTH
def test_masked_infinities_of_loaded_weights_do_no_harm(storage, value, parametrization):
    net = sparsify(network(), sparsity=0.7, storage=storage, parametrization=parametrization)
    state = network().state_dict()
    for weight_name, mask in masks(net).items():
        state[weight_name] = torch.where(mask, state[weight_name], value)
    net.load_state_dict(state)
    assert train(net, optim.AdamW(net.parameters())).isfinite().all()
    assert all(factor.isfinite().all() for factor in net.parameters())


@pytest.mark.parametrize("storage", [Compact, Dense])
@pytest.mark.parametrize("beta", [0.5, 1.0, 4])
def test_right_inverse_gives_theta_and_beta(storage, beta):
    mask, theta = torch.rand(4, 6) < 0.5, torch.randn(4, 6, dtype=torch.float64)
    sign_in = SignIn(storage(mask), beta)
    m, w = sign_in.right_inverse(theta)
    torch.testing.assert_close(sign_in(m, w), theta * mask, rtol=1e-14, atol=0)
    expected = torch.full((int(mask.sum()),), float(beta), dtype=torch.float64) if storage is Compact else beta * mask
    torch.testing.assert_close(scaling(m, w), expected.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_have_the_dtype_of_the_weight(dtype):
    sign_in = SignIn(Dense(torch.rand(4, 6) < 0.5))
    assert {factor.dtype for factor in sign_in.right_inverse(torch.randn(4, 6, dtype=dtype))} == {dtype}


def test_sign_in_refuses_a_negative_beta():
    with pytest.raises(ValueError, match=r"`beta` must be above 0, got -1\.0"):
        SignIn(Dense(torch.ones(2, 2, dtype=torch.bool)), beta=-1.0)


def test_parametrizations_print_what_they_hold():
    storage = Compact(torch.eye(3, dtype=torch.bool))
    assert repr(Masked(storage)) == "Masked((3, 3), active=3, storage='compact')"
    assert repr(SignIn(storage, beta=2.0)) == "SignIn((3, 3), active=3, storage='compact', beta=2.0)"
