"""The plain view: what optimizers and their factories see, and what they get."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Optimizer

from lightning_signin import effective_weights, plain_view, sparsify
from lightning_signin.core.plain_view import exchange_parameters
from lightning_signin.core.weights import sparse_weights

VARIANTS = pytest.mark.parametrize(
    "options",
    [{"storage": s, "parametrization": r} for s in ("compact", "dense") for r in ("sign-in", "plain")],
    ids=["compact", "compact-masked", "dense", "dense-masked"],
)


def sparse_copy(net: nn.Module, **options: object) -> nn.Module:
    return sparsify(copy.deepcopy(net), sparsity=0.7, include=["*in_proj_weight", "*"], **options)


def small() -> nn.Module:
    return sparsify(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), sparsity=0.5)


def owners_of(net: nn.Module) -> dict[str, type]:
    return {name: type(net.get_submodule(name.rpartition(".")[0])) for name, _ in net.named_parameters()}


def layout(net: nn.Module) -> list[tuple]:
    """Every parameter with its name, shape and owner's type, and every module with its type."""
    owners = owners_of(net)
    parameters = [(n, p.shape, p.ndim, type(p), p.requires_grad, owners[n]) for n, p in net.named_parameters()]
    return parameters + [(name, type(module)) for name, module in net.named_modules()]


@VARIANTS
def test_view_shows_the_plain_model(zoo, images, options):
    net = sparse_copy(zoo, **options)
    outside, thetas = [name for name, _ in net.named_parameters()], effective_weights(net)
    with plain_view(net) as shown:
        assert shown is net
        assert layout(net) == layout(zoo)
        assert net.encoder.weight is net.decoder.weight
        assert all(torch.equal(net.get_parameter(name), theta) for name, theta in thetas.items())
        inside = net(images)
    assert [name for name, _ in net.named_parameters()] == outside
    assert torch.equal(net(images), inside)


def test_view_keeps_state_dicts_plain(zoo):
    net = sparse_copy(zoo)
    with plain_view(net):
        assert list(net.state_dict()) == list(zoo.state_dict())
        net.load_state_dict(zoo.state_dict())
    assert list(net.state_dict()) == list(zoo.state_dict())


def test_view_shows_frozen_weights_as_frozen():
    net = small()
    net[0].parametrizations.weight.requires_grad_(False)
    with plain_view(net):
        assert [parameter.requires_grad for parameter in net.parameters()] == [False, True, True, True]


def factors(net: nn.Module, name: str) -> list[int]:
    return [id(factor) for factor in sparse_weights(net)[name].factors]


def given(optimizer: Optimizer, group: int = 0) -> list[int]:
    return [id(parameter) for parameter in optimizer.param_groups[group]["params"]]


@VARIANTS
def test_view_exchanges_placeholders_for_factors_in_order(zoo, options):
    net = sparse_copy(zoo, **options)
    with plain_view(net):
        optimizer = SGD(net.parameters(), lr=0.1)
    weights = sparse_weights(net)
    expected = []
    for name, _ in zoo.named_parameters():
        expected += factors(net, name) if name in weights else [id(net.get_parameter(name))]
    assert given(optimizer) == expected


def test_view_groups_by_ndim_get_factors():
    net = small()
    with plain_view(net):
        matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
        optimizer = AdamW([{"params": iter(matrices), "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}])
    assert given(optimizer, 0) == factors(net, "0.weight") + factors(net, "2.weight")
    assert given(optimizer, 1) == [id(net[0].bias), id(net[2].bias)]


@pytest.mark.parametrize(("parametrization", "parts"), [("sign-in", ["m", "w"]), ("plain", ["theta"])])
def test_view_names_the_factors_of_named_parameters(parametrization, parts):
    net = sparsify(nn.Sequential(nn.Linear(4, 6)), sparsity=0.5, parametrization=parametrization)
    with plain_view(net):
        optimizer = SGD(net.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [f"0.weight.{part}" for part in parts] + ["0.bias"]
    assert given(optimizer) == [*factors(net, "0.weight"), id(net[0].bias)]


def test_view_adds_groups_later_and_single_tensors():
    net = small()
    with plain_view(net):
        optimizer = SGD([net[0].weight], lr=0.1)
        optimizer.add_param_group({"params": net[2].weight, "lr": 0.5})
    assert [given(optimizer, i) for i in (0, 1)] == [factors(net, "0.weight"), factors(net, "2.weight")]
    assert optimizer.param_groups[1]["lr"] == 0.5


def test_timm_factory_decays_what_it_decays_in_the_plain_model(zoo):
    net = sparse_copy(zoo)
    plain = create_optimizer_v2(zoo, opt="adamw", lr=0.1, weight_decay=0.05)
    with plain_view(net):
        optimizer = create_optimizer_v2(net, opt="adamw", lr=0.1, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in zoo.named_parameters()}
    of_sparse = {f: name for name in sparse_weights(net) for f in factors(net, name)}
    of_sparse |= {id(parameter): name for name, parameter in net.named_parameters() if id(parameter) not in of_sparse}
    assert len(optimizer.param_groups) == len(plain.param_groups) == 2
    for mine, its in zip(optimizer.param_groups, plain.param_groups, strict=True):
        assert mine["weight_decay"] == its["weight_decay"]
        assert {of_sparse[id(p)] for p in mine["params"]} == {names[id(p)] for p in its["params"]}


def test_optimizers_with_early_state_make_it_for_the_factors():
    net = small()
    with plain_view(net):
        optimizer = Adagrad(net.parameters(), lr=0.1)
    assert list(map(id, optimizer.state)) == given(optimizer)
    assert all(state["sum"].shape == parameter.shape for parameter, state in optimizer.state.items())
    before = net[0].weight.clone()
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_view_leaves_other_optimizers_alone():
    net, other = small(), small()
    early = SGD(net.parameters(), lr=0.1)
    before = given(early)
    with plain_view(net):
        unrelated = SGD(other.parameters(), lr=0.1)
    assert given(early) == before
    assert given(unrelated) == [id(parameter) for parameter in other.parameters()]


def test_view_passes_errors_of_optimizers_on():
    with plain_view(small()) as net, pytest.raises(TypeError, match="optimizer parameters need to be organized in "):
        SGD([{"params": set(net.parameters())}], lr=0.1)


def test_view_ends_after_an_exception():
    net, plain_method = small(), Optimizer.add_param_group
    before, output = layout(net), net(torch.ones(1, 4))

    def fail_inside() -> None:
        with plain_view(net):
            assert Optimizer.add_param_group is not plain_method
            raise ValueError("configure_optimizers failed")

    with pytest.raises(ValueError, match="configure_optimizers failed"):
        fail_inside()
    assert layout(net) == before
    assert torch.equal(net(torch.ones(1, 4)), output)
    assert Optimizer.add_param_group is plain_method


def test_view_of_a_plain_module_changes_nothing():
    net = nn.Linear(3, 3)
    with plain_view(net):
        assert given(SGD(net.parameters())) == [id(net.weight), id(net.bias)]


@pytest.mark.parametrize("storage", ["compact", "dense"])
@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named parameters"])
def test_optimizer_built_before_sparsify_trains_the_factors(storage, named):
    early, late = nn.Linear(6, 4), nn.Linear(6, 4)
    late.load_state_dict(early.state_dict())
    first = torch.optim.Adagrad(
        early.named_parameters() if named else early.parameters(), lr=0.1, initial_accumulator_value=0.5
    )
    plain = early.weight
    sparsify(early, sparsity=0.5, storage=storage)
    exchange_parameters(first, {id(plain): sparse_weights(early)["weight"]})
    sparsify(late, sparsity=0.5, storage=storage)
    with plain_view(late):
        second = torch.optim.Adagrad(late.parameters(), lr=0.1, initial_accumulator_value=0.5)
    if named:
        assert first.param_groups[0]["param_names"] == ["weight.m", "weight.w", "bias"]
    x = torch.randn(5, 6)
    for module, optimizer in ((early, first), (late, second)):
        for _ in range(3):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(early.weight, late.weight, atol=1e-7)
    assert int(early.weight.count_nonzero()) == 12
