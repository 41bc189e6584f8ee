"""The plain parameter of a sparse weight: the same object all the time, and what is done to it is done to θ."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lightning_signin import effective_weights, masks, merge_, plain_view, sparsify
from lightning_signin.core.weights import sparse_weights

VARIANTS = pytest.mark.parametrize(
    "options",
    [{"storage": s, "parametrization": r} for s in ("compact", "dense") for r in ("sign-in", "plain")],
    ids=["compact", "compact-masked", "dense", "dense-masked"],
)


@pytest.fixture(params=[{}, {"parametrization": "plain"}, {"storage": "dense"}], ids=["product", "masked", "dense"])
def made(request):
    """A sparse network, the parameter that its first weight was, and a plain network of the same θ."""
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    parameter = net[0].weight
    sparsify(net, sparsity=0.5, **request.param)
    return net, parameter, merge_(copy.deepcopy(net))


def loss(net: nn.Module) -> torch.Tensor:
    return net(torch.arange(24.0, dtype=torch.float64).view(4, 6).sin()).square().sum()


@VARIANTS
def test_parameters_are_the_same_objects_before_in_the_view_and_after(zoo, images, options):
    before = [(name, id(parameter)) for name, parameter in zoo.named_parameters(remove_duplicate=False)]
    strides = {name: parameter.stride() for name, parameter in zoo.named_parameters()}
    sparsify(zoo, sparsity=0.7, **options)
    with plain_view(zoo):
        assert [(name, id(p)) for name, p in zoo.named_parameters(remove_duplicate=False)] == before
    thetas = effective_weights(zoo)
    merge_(zoo)
    assert [(name, id(p)) for name, p in zoo.named_parameters(remove_duplicate=False)] == before
    assert all(type(p) is nn.Parameter and p.stride() == strides[n] for n, p in zoo.named_parameters())
    assert all(torch.equal(zoo.get_parameter(name), theta) for name, theta in thetas.items())


def tensors() -> list[torch.Tensor]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)]


def test_no_dense_weight_stays_in_memory():
    others = tensors()  # of other tests; held, so that no new one gets the id of an old one
    known = set(map(id, others))
    net = nn.Linear(300, 500, bias=False)
    parameter = net.weight
    sparsify(net, sparsity=0.9)
    for _ in range(2):
        ours = [found for found in tensors() if id(found) not in known]
        assert ours
        assert not [found for found in ours if found.untyped_storage().nbytes() >= 300 * 500]
        with plain_view(net):
            assert net.weight is parameter
    assert copy.deepcopy(net).parametrizations.weight[0].plain_parameter.shape == (500, 300)


def test_it_reads_as_theta_with_the_gradient_of_theta(made):
    net, parameter, plain = made
    assert (parameter.shape, parameter.dtype, parameter.is_leaf) == ((5, 6), torch.float64, True)
    assert isinstance(parameter, nn.Parameter)
    assert torch.equal(parameter.detach(), plain[0].weight)
    for module, weight in ((net, parameter), (plain, plain[0].weight)):
        (loss(module) + weight.square().sum() + 0.1 * torch.linalg.matrix_norm(weight)).backward()
    expected = plain[0].weight.grad * masks(net)["0.weight"]
    assert torch.allclose(parameter.grad, expected, atol=1e-12)
    parameter.grad = None
    assert all(factor.grad is None for factor in sparse_weights(net)["0.weight"].factors)


def test_clipping_over_a_list_clips_the_gradient_of_theta(made):
    net, parameter, _ = made
    loss(net).backward()
    direction = parameter.grad / parameter.grad.norm()
    clip_grad_norm_([parameter], 0.01)
    assert torch.allclose(parameter.grad, 0.01 * direction, atol=1e-6)


def halved(parameter):
    with torch.no_grad():
        assert parameter.mul_(0.5) is parameter


def halved_data(parameter):
    parameter.data.mul_(0.5)


def halved_views(parameter):
    parameter.data[:2].mul_(0.5)
    parameter.data.view(-1)[12:].mul_(0.5)


def halved_by_assignment(parameter):
    parameter.data = parameter.data * 0.5


def halved_in_a_list(parameter):
    with torch.no_grad():
        torch._foreach_mul_([parameter], 0.5)


@pytest.mark.parametrize("halve", [halved, halved_data, halved_views, halved_by_assignment, halved_in_a_list])
def test_what_is_written_is_written_into_theta(made, halve):
    net, parameter, plain = made
    other = effective_weights(net)["2.weight"]
    halve(parameter)
    assert torch.allclose(net[0].weight, 0.5 * plain[0].weight, atol=1e-12)
    assert torch.equal(net[2].weight, other)
    assert torch.equal(masks(net)["0.weight"], plain[0].weight != 0)


def test_a_write_that_changes_nothing_leaves_the_factors_as_they_are(made):
    net, parameter, _ = made
    factors = sparse_weights(net)["0.weight"].factors
    with torch.no_grad():
        for factor in factors:
            factor.mul_(1.5)
        before = [factor.clone() for factor in factors]
        parameter.clamp_(-100, 100)
    assert all(torch.equal(factor, value) for factor, value in zip(factors, before, strict=True))


def test_gradients_through_a_map_are_those_of_theta():
    net = nn.Linear(6, 5)
    parameter = net.weight
    sparsify(net, parametrization="powerprop", sparsity=0.5)
    net(torch.ones(1, 6)).sum().backward()
    assert torch.allclose(parameter.grad, masks(net)["weight"].float())


def test_attributes_are_carried_to_the_factors_and_back():
    net = nn.Linear(6, 5)
    parameter = net.weight
    parameter.lr_scale = 0.1
    sparsify(net, sparsity=0.5)
    assert [factor.lr_scale for factor in sparse_weights(net)["weight"].factors] == [0.1, 0.1]
    with plain_view(net):
        assert vars(net.weight) == {"lr_scale": 0.1}
        net.weight.decays = False
    assert [factor.decays for factor in sparse_weights(net)["weight"].factors] == [False, False]
    merge_(net)
    assert vars(net.weight) == {"lr_scale": 0.1, "decays": False}


def test_hooks_get_and_change_the_gradient_of_theta(made):
    net, parameter, plain = made
    for weight in (parameter, plain[0].weight):
        weight.register_hook(lambda gradient: 3 * gradient)
        weight.register_hook(lambda gradient: gradient.clamp(-1, 1))
    mask = masks(net)["0.weight"]
    for module in (net, plain):
        loss(module).backward()
    assert torch.allclose(parameter.grad, plain[0].weight.grad * mask, atol=1e-12)


def test_hooks_after_accumulation_run_once_with_all_gradients(made):
    net, parameter, plain = made
    seen = []
    for weight in (parameter, plain[0].weight):
        weight.register_post_accumulate_grad_hook(lambda p: seen.append((p, p.grad.clone(), p.detach().clone())))
    for module in (net, plain, net):
        loss(module).backward()
    assert [id(p) for p, _, _ in seen] == [id(parameter), id(plain[0].weight), id(parameter)]
    mask = masks(net)["0.weight"]
    assert torch.allclose(seen[0][1], seen[1][1] * mask, atol=1e-12)
    assert torch.allclose(seen[2][1], 2 * seen[0][1], atol=1e-12)
    assert torch.equal(seen[0][2], seen[1][2])


def test_it_can_be_frozen_moved_copied_and_pickled(made):
    net, parameter, plain = made
    parameter.requires_grad_(False)
    assert not any(factor.requires_grad for factor in sparse_weights(net)["0.weight"].factors)
    parameter.requires_grad = True
    assert all(factor.requires_grad for factor in sparse_weights(net)["0.weight"].factors)
    net.noted = [parameter]
    twin = copy.deepcopy(net)
    halved(twin.noted[0])
    assert torch.allclose(twin[0].weight, 0.5 * net[0].weight, atol=1e-12)
    assert torch.equal(net[0].weight, plain[0].weight)
    again = pickle.loads(pickle.dumps(parameter))
    assert torch.equal(again.detach(), parameter.detach())
    net.float()
    assert parameter.dtype == torch.float32
    assert merge_(twin)[0].weight is twin.noted[0]
    assert merge_(net)[0].weight is parameter
