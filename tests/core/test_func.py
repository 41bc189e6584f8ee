"""`torch.func` and forward-mode AD on sparse networks, against the merged network."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import hessian as hessian_of_autograd
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    replace_all_batch_norm_modules_,
    stack_module_state,
    vjp,
    vmap,
)

from lightning_signin import SignInError, merge_, sparsify
from lightning_signin.core.weights import sparse_weights
from lightning_signin.parametrizations import STR, Powerprop

STORAGES = pytest.mark.parametrize("storage", ["compact", "dense"])
PARAMETRIZATIONS = pytest.mark.parametrize(
    "parametrization",
    ["sign-in", "plain", STR(s_init=-3.0), Powerprop(sign_in=True)],
    ids=["sign-in", "plain", "str", "powerprop"],
)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x)[0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.GRU(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x)[0])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), (6,)),
    "conv": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Tanh(), nn.Flatten(-2), nn.Linear(16, 3)), (2, 6)),
    "attention": (Attention, (5, 8)),
    "recurrent": (Recurrent, (4, 6)),
}
CALLS: dict[str, Callable[[Any, Tensor], Any]] = {
    "vmap": lambda net, x: vmap(net)(x),
    "vmap over a batch": lambda net, x: vmap(vmap(net))(torch.stack([x, -x])),
    "jacrev": lambda net, x: jacrev(net)(x[0]),
    "jacfwd": lambda net, x: jacfwd(net)(x[0]),
    "hessian": lambda net, x: hessian(lambda v: net(v).square().sum())(x[0]),
    "Laplacians": lambda net, x: vmap(hessian(lambda v: net(v).square().sum()))(x),
    "grad": lambda net, x: grad(lambda v: net(v).square().sum())(x[0]),
    "grad without gradients": lambda net, x: torch.no_grad()(grad(lambda v: net(v).square().sum()))(x[0]),
    "vjp": lambda net, x: vjp(net, x[0])[1](torch.ones_like(net(x[0]))),
    "jvp": lambda net, x: jvp(net, (x[0],), (x[1],)),
    "linearize": lambda net, x: linearize(net, x[0])[1](x[1]),
    "forward-mode AD": lambda net, x: forward_ad_tangent(net, x[0], x[1]),
    "autograd's hessian": lambda net, x: hessian_of_autograd(lambda v: net(v).square().sum(), x[0]),
    "autograd's hessian, forward": lambda net, x: hessian_of_autograd(
        lambda v: net(v).square().sum(), x[0], vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
}
# Torch has no batching rule and no forward-mode derivative for its recurrent layers.
OF_RECURRENT = {"grad", "grad without gradients", "vjp"}


def forward_ad_tangent(net: nn.Module, x: Tensor, tangent: Tensor) -> Tensor | None:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(net(forward_ad.make_dual(x, tangent))).tangent


def pair(name: str, storage: str = "compact", parametrization: Any = "sign-in") -> tuple[nn.Module, nn.Module, Tensor]:
    """A sparse network, the same merged, and inputs."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = sparsify(make().double(), sparsity=0.6, storage=storage, parametrization=parametrization)
    return net, merge_(copy.deepcopy(net)), torch.randn(4, *shape, dtype=torch.float64)


@STORAGES
@pytest.mark.parametrize(
    ("name", "call"), [(n, c) for n in NETWORKS for c in CALLS if n != "recurrent" or c in OF_RECURRENT]
)
def test_transforms_equal_those_of_the_merged_network(name, call, storage):
    net, plain, x = pair(name, storage)
    torch.testing.assert_close(CALLS[call](net, x), CALLS[call](plain, x))


@STORAGES
@PARAMETRIZATIONS
@pytest.mark.parametrize("call", ["vmap", "jacfwd", "Laplacians"])
def test_transforms_of_every_parametrization(call, parametrization, storage):
    net, plain, x = pair("linear", storage, parametrization)
    torch.testing.assert_close(CALLS[call](net, x), CALLS[call](plain, x))


@STORAGES
@PARAMETRIZATIONS
@pytest.mark.parametrize("name", ["linear", "conv", "attention"])
def test_gradients_per_sample_are_those_of_one_sample_after_the_other(name, parametrization, storage):
    net, _, x = pair(name, storage, parametrization)
    parameters = {key: value.detach() for key, value in net.named_parameters()}

    def loss(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(net, values, (one,)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        alone = torch.autograd.grad(net(one).square().sum(), list(net.parameters()))
        torch.testing.assert_close([found[key][i] for key in parameters], list(alone))


@STORAGES
def test_gradients_of_factors_that_were_computed_before_the_transform(storage):
    net, _, x = pair("linear", storage)
    output = net(x)
    rows = torch.eye(output.numel(), dtype=x.dtype).view(-1, *output.shape)
    together = torch.autograd.grad(output, list(net.parameters()), rows, is_grads_batched=True, retain_graph=True)
    for i, row in enumerate(rows):
        alone = torch.autograd.grad(output, list(net.parameters()), row, retain_graph=True)
        torch.testing.assert_close([each[i] for each in together], list(alone))


@STORAGES
@pytest.mark.parametrize("order", [1, 2])
def test_an_inner_loop_of_meta_learning(order, storage):
    net, _, x = pair("linear", storage)
    names = [name for name, _ in net.named_parameters()]

    def adapted(values: list[Tensor], task: Tensor) -> Tensor:
        loss = functional_call(net, dict(zip(names, values, strict=True)), (task,)).square().sum()
        steps = torch.autograd.grad(loss, values, create_graph=order == 2)
        fast = [value - 0.1 * step for value, step in zip(values, steps, strict=True)]
        return functional_call(net, dict(zip(names, fast, strict=True)), (task,)).square().sum()

    found = torch.autograd.grad(adapted(list(net.parameters()), x), list(net.parameters()))

    # The same without functional calls: a copy takes the inner step.
    if order == 1:
        twin = copy.deepcopy(net)
        steps = torch.autograd.grad(twin(x).square().sum(), list(twin.parameters()))
        with torch.no_grad():
            for parameter, step in zip(twin.parameters(), steps, strict=True):
                parameter -= 0.1 * step
        torch.testing.assert_close(found, torch.autograd.grad(twin(x).square().sum(), list(twin.parameters())))
    else:
        by_func = grad(lambda values: func_adapted(net, names, values, x))([p.detach() for p in net.parameters()])
        torch.testing.assert_close(list(found), by_func)


def func_adapted(net: nn.Module, names: list[str], values: list[Tensor], task: Tensor) -> Tensor:
    def loss(now: list[Tensor]) -> Tensor:
        return functional_call(net, dict(zip(names, now, strict=True)), (task,)).square().sum()

    return loss([value - 0.1 * step for value, step in zip(values, grad(loss)(values), strict=True)])


@STORAGES
def test_loss_per_sample_with_batch_norm_without_running_statistics(storage):
    torch.manual_seed(0)
    net = sparsify(nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten()), sparsity=0.5, storage=storage)
    replace_all_batch_norm_modules_(net)
    plain, x = merge_(copy.deepcopy(net)), torch.randn(5, 2, 6)
    each = [vmap(lambda one, of=of: of(one[None]).square().sum())(x) for of in (net, plain)]
    torch.testing.assert_close(*each)


@STORAGES
def test_an_ensemble_is_stacked_from_plain_copies(storage):
    x = torch.randn(3, 6)
    nets = [sparsify(NETWORKS["linear"][0](), sparsity=0.5, storage=storage, seed=seed) for seed in range(3)]
    plain = [merge_(copy.deepcopy(net)) for net in nets]
    base = copy.deepcopy(plain[0]).to("meta")
    found = vmap(lambda values: functional_call(base, values, (x,)))(stack_module_state(plain)[0])
    torch.testing.assert_close(found, torch.stack([net(x) for net in nets]))
    # By plain names it works on a sparse network as well, whatever its own mask is.
    states = [net.state_dict() for net in nets]
    stacked = {name: torch.stack([state[name].clone() for state in states]) for name in states[0]}
    found = vmap(lambda values: functional_call(nets[0], values, (x,)))(stacked)
    torch.testing.assert_close(found, torch.stack([net(x) for net in nets]))


@STORAGES
def test_a_stack_of_factors_on_the_meta_device_is_refused(storage):
    nets = [sparsify(NETWORKS["linear"][0](), sparsity=0.5, storage=storage) for _ in range(3)]
    base, x = copy.deepcopy(nets[0]).to("meta"), torch.randn(3, 6)
    with pytest.raises(SignInError, match=r"has no masks, .* stack plain copies, `merge_\(copy.deepcopy\(net\)\)`"):
        vmap(lambda values: functional_call(base, values, (x,)))(stack_module_state(nets)[0])
    with pytest.raises(SignInError, match="has no masks"):
        functional_call(base, dict(nets[0].named_parameters()), (x,))


@STORAGES
@PARAMETRIZATIONS
def test_an_ensemble_of_sparse_networks_with_one_mask_runs(parametrization, storage):
    options = {"sparsity": 0.5, "storage": storage, "parametrization": parametrization}
    nets, x = [sparsify(NETWORKS["linear"][0](), **options) for _ in range(3)], torch.randn(3, 6)
    found = vmap(lambda values: functional_call(nets[0], values, (x,)))(stack_module_state(nets)[0])
    torch.testing.assert_close(found, torch.stack([net(x) for net in nets]))


class Renamed(nn.Sequential):
    """With names of its own, as wrappers have them."""

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return ((f"own.{name}", value) for name, value in super().named_parameters(*args, **kwargs))


@STORAGES
@pytest.mark.parametrize("made", [nn.Sequential, Renamed])
@pytest.mark.parametrize("other", [{"seed": 1}, {"parametrization": "plain"}, {"sparsity": 0.25}, None])
def test_a_stack_of_sparse_networks_with_other_masks_is_refused(other, made, storage):
    def network(options: dict[str, Any] | None) -> nn.Module:
        net = made(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        return net if options is None else sparsify(net, **{"sparsity": 0.5, "storage": storage, **options})

    nets = [network({}), network({}), network(other)]
    for members in (nets, nets[::-1]):
        with pytest.raises(SignInError, match=r"the same masks, and those of 0.weight differ.*Stack plain copies"):
            stack_module_state(members)
    stack_module_state([merge_(net) for net in nets])


@STORAGES
def test_two_maps_are_not_stacked(storage):
    nets = [
        sparsify(nn.Sequential(nn.Linear(6, 8)), sparsity=0.5, storage=storage, parametrization=Powerprop(alpha=alpha))
        for alpha in (2.0, 3.0)
    ]
    with pytest.raises(SignInError, match=r"those of 0.weight differ"):
        stack_module_state(nets)


def test_factors_and_masks_are_the_same_after_a_transform():
    net, _, x = pair("linear")
    before = copy.deepcopy([(weight.storage.mask, *weight.factors) for weight in sparse_weights(net).values()])
    for call in ("vmap", "jacfwd", "Laplacians"):
        CALLS[call](net, x)
    after = [(weight.storage.mask, *weight.factors) for weight in sparse_weights(net).values()]
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))
