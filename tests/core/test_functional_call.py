"""`torch.func.functional_call` with weights by their plain names."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from lightning_signin import merge_, plain_view, sparsify
from lightning_signin.core.weights import sparse_weights
from tests.core.test_func import NETWORKS, PARAMETRIZATIONS, STORAGES, pair

EVERY = pytest.mark.parametrize("name", NETWORKS)


def others(net: nn.Module) -> dict[str, Tensor]:
    """Weights off the masks too, as of a dense teacher."""
    return {name: 0.5 * value.clone() + 0.01 for name, value in net.state_dict().items()}


def parameters(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def moved(net: nn.Module) -> nn.Module:
    """With m² − w² other than β."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.3)
    return net


@EVERY
@STORAGES
@pytest.mark.parametrize("gradients", [True, False])
def test_weights_by_plain_names_are_used_as_they_are_and_leave_no_trace(name, storage, gradients):
    net, plain, x = pair(name, storage)
    given = others(moved(net))
    before, same = parameters(net), dict(given)
    with torch.set_grad_enabled(gradients):
        assert torch.equal(functional_call(net, given, (x,)), functional_call(plain, dict(given), (x,)))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))
    assert all(given[key] is same[key] for key in [*given, *same])  # torch writes what it finds at the end into it
    assert not any(weight.holder.given.tensors for weight in sparse_weights(net).values())


@PARAMETRIZATIONS
@STORAGES
def test_own_state_gives_own_outputs(parametrization, storage):
    net, _, x = pair("linear", storage, parametrization)
    moved(net)
    torch.testing.assert_close(functional_call(net, net.state_dict(), (x,)), net(x))


@EVERY
def test_gradients_go_to_what_was_given(name):
    net, plain, x = pair(name)
    given = others(net)

    def loss(values: dict[str, Tensor], of: nn.Module) -> Tensor:
        return functional_call(of, values, (x[0],)).square().sum()

    torch.testing.assert_close(grad(loss)(given, net), grad(loss)(given, plain))
    leaves = {key: value.requires_grad_() for key, value in given.items()}
    loss(leaves, net).backward()
    assert all(value.grad is not None for value in leaves.values())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_parameters_of_another_network_can_be_given():
    net, plain, x = pair("linear")
    teacher = copy.deepcopy(plain)
    moved(teacher)
    assert torch.equal(functional_call(net, dict(teacher.named_parameters()), (x,)), teacher(x))
    assert [name for name, _ in net.named_parameters()] != [name for name, _ in teacher.named_parameters()]
    assert not torch.equal(net(x), teacher(x))


def test_calls_within_calls_and_after_errors():
    net, plain, x = pair("linear")
    outer, inner = others(plain), {"0.weight": torch.zeros_like(plain[0].weight)}

    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, of: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
            return functional_call(of, dict(inner), (x,)), of(x)

    found = functional_call(Nested(), {f"net.{key}": value for key, value in outer.items()}, (net, x))
    assert torch.equal(found[0], functional_call(plain, {**outer, **inner}, (x,)))
    assert torch.equal(found[1], functional_call(plain, dict(outer), (x,)))
    own = net(x)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        functional_call(net, others(plain), (x[:, 1:],))
    assert torch.equal(net(x), own)


def test_a_copy_made_during_a_call_has_its_own_weights():
    net, _, x = pair("linear")
    copies = []

    class Copied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            copies.append(copy.deepcopy(self.net))
            return self.net(x)

    functional_call(Copied(), {f"net.{key}": value for key, value in others(net).items()}, (x,))
    assert torch.equal(copies[0][0].weight, net[0].weight)


@pytest.mark.parametrize("names", [["0.weight"], ["1.weight"], ["0.weight", "1.weight"]])
def test_tied_weights_are_given_together(names):
    layers = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    layers[1].weight = layers[0].weight
    net = sparsify(nn.Sequential(*layers), sparsity=0.5)
    plain, x, new = merge_(copy.deepcopy(net)), torch.randn(2, 4), torch.randn(4, 4)
    own = net(x)
    given = dict.fromkeys(names, new)
    assert torch.equal(functional_call(net, given, (x,)), functional_call(plain, dict(given), (x,)))
    assert torch.equal(net(x), own)


def test_a_compiled_call_uses_the_given_weights():
    net, plain, x = pair("linear")
    given, before = others(net), parameters(net)
    compiled = torch.compile(lambda values: functional_call(net, values, (x,)), backend="eager")
    torch.testing.assert_close(compiled(given), functional_call(plain, others(net), (x,)))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(net), strict=True))
    torch._dynamo.reset()


def test_inside_the_plain_view_and_after_assignments_nothing_changes():
    net, plain, x = pair("linear")
    with plain_view(net):
        assert torch.equal(functional_call(net, others(plain), (x,)), functional_call(plain, others(plain), (x,)))
    with torch.no_grad():
        net[0].weight = 2 * net[0].weight  # through the parametrization, as torch does
    torch.testing.assert_close(net[0].weight, 2 * plain[0].weight)
    with pytest.raises(ValueError, match="weight is a sparse weight and cannot be deleted"):
        del net[0].weight


@STORAGES
def test_strict_calls_take_factors(storage):
    """As the README says: torch compares the names with those of `named_parameters`."""
    net, plain, x = pair("linear", storage)
    given = {name: value.detach() for name, value in net.named_parameters()}
    assert torch.equal(functional_call(net, given, (x,), strict=True), net(x))
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\): '0.weight', '2.weight'"):
        functional_call(net, others(plain), (x,), strict=True)
    with plain_view(net):
        assert torch.equal(
            functional_call(net, others(plain), (x,), strict=True), functional_call(net, others(plain), x)
        )
