"""What is written into the plain view: values, gradients and flags go to the factors, and nothing else changes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import SignInError, effective_weights, masks, merge_, plain_view, sparsify
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sparse_weights
from lightning_signin.parametrizations import STR, Powerprop

FORMS = pytest.mark.parametrize(
    "form", ["sign-in", "plain", Powerprop(), STR(s_init=-3.0), STR(sign_in=True, s_init=-3.0)], ids=str
)
STORAGES = pytest.mark.parametrize("storage", ["compact", "dense"])


def net(form: object = "sign-in", storage: str = "compact", **options: object) -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return sparsify(module, sparsity=0.5, parametrization=form, storage=storage, **options)


def backward(module: nn.Module) -> None:
    x = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    module(x).square().sum().backward()


def tensors(module: nn.Module, gradients: bool = False) -> list[Tensor]:
    held = [tensor for weight in sparse_weights(module).values() for tensor in weight.tensors]
    return [t.grad.clone() for t in held if t.grad is not None] if gradients else [t.detach().clone() for t in held]


def merged_gradients(module: nn.Module) -> list[Tensor]:
    """∂L/∂θ on the mask, the slow way: by a backward pass of the merged network."""
    kept, plain = masks(module), merge_(copy.deepcopy(module))
    plain.zero_grad()
    backward(plain)
    return [plain.get_parameter(name).grad * mask for name, mask in kept.items()]


@FORMS
@STORAGES
def test_reading_changes_no_bit(form, storage):
    module = net(form, storage)
    backward(module)
    before = tensors(module), tensors(module, gradients=True)
    with plain_view(module):
        assert all(parameter.grad is not None for parameter in module.parameters())
    after = tensors(module), tensors(module, gradients=True)
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))


@FORMS
@STORAGES
def test_written_values_are_those_of_theta(form, storage):
    module = net(form, storage)
    expected = {name: theta.clamp(-0.1, 0.1) for name, theta in effective_weights(module).items()}
    before = sparse_weights(module)["0.weight"]
    kept = before.factors[-1].detach().clone()
    with plain_view(module):
        for parameter in module.parameters():
            parameter.data.clamp_(-0.1, 0.1)
    for name, theta in effective_weights(module).items():
        torch.testing.assert_close(theta, expected[name])
    weight = sparse_weights(module)["0.weight"]
    unclipped = weight.storage.pack(expected["0.weight"]).abs() < 0.1
    assert torch.equal(weight.factors[-1][unclipped], kept[unclipped])
    assert not torch.equal(weight.factors[-1], kept)


@FORMS
@STORAGES
def test_gradient_is_that_of_theta(form, storage):
    module = net(form, storage)
    backward(module)
    with plain_view(module):
        found = [module[0].weight.grad.clone(), module[2].weight.grad.clone()]
    for gradient, expected, theta in zip(
        found, merged_gradients(module), effective_weights(module).values(), strict=True
    ):
        torch.testing.assert_close(gradient, expected * (theta != 0 if isinstance(form, STR) else 1))


@FORMS
@STORAGES
def test_written_gradients_are_those_of_theta(form, storage):
    module = net(form, storage)
    backward(module)
    with plain_view(module):
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        assert norm > 0.1
        clipped = [parameter.grad.clone() for parameter in module.parameters()]
    with plain_view(module):
        again = [parameter.grad for parameter in module.parameters()]
    torch.testing.assert_close(again, clipped)


@STORAGES
def test_step_after_clipping_is_the_chain_rule(storage):
    """The factors' gradients are g ⊙ w and g ⊙ m of the gradient g that was written."""
    module = net(storage=storage)
    backward(module)
    weight = sparse_weights(module)["0.weight"]
    with plain_view(module):
        module[0].weight.grad = torch.full_like(module[0].weight, 0.25)
    m, w = weight.factors
    torch.testing.assert_close(m.grad, 0.25 * w.detach())
    torch.testing.assert_close(w.grad, 0.25 * m.detach())


def test_gradient_of_zero_is_exactly_zero():
    module = net()
    backward(module)
    with plain_view(module):
        module[0].weight.grad[:4] = 0
    weight = sparse_weights(module)["0.weight"]
    rows = weight.storage.index // 5
    for factor in weight.factors:
        assert not factor.grad[rows < 4].any()
        assert factor.grad[rows >= 4].all()


def test_changed_values_keep_their_gradient_in_theta():
    module = net()
    backward(module)
    with plain_view(module):
        expected = module[0].weight.grad.clone()
        module[0].weight.data.mul_(-0.5)
    with plain_view(module):
        torch.testing.assert_close(module[0].weight.grad, expected)


def test_zero_grad_in_the_view_clears_the_factors():
    module = net(STR(s_init=-3.0))
    backward(module)
    with plain_view(module):
        module.zero_grad()
    assert all(parameter.grad is None for parameter in module.parameters())


def test_flags_go_to_all_trainable_tensors():
    module = net(STR(s_init=-3.0))
    with plain_view(module):
        module[0].weight.requires_grad = False
    first, second = sparse_weights(module).values()
    assert not any(tensor.requires_grad for tensor in first.tensors)
    assert all(tensor.requires_grad for tensor in second.tensors)


def test_changed_entries_are_balanced():
    module = net(beta=0.5)
    with plain_view(module):
        nn.init.normal_(module[0].weight)
        module[0].weight.data.mul_(1)
    m, w = sparse_weights(module)["0.weight"].factors
    torch.testing.assert_close(scaling(m, w), torch.full_like(m, 0.5))


@STORAGES
def test_entries_off_the_mask_stay_zero_and_it_is_said(storage):
    module = net(storage=storage)
    mask = masks(module)["0.weight"]
    with pytest.warns(UserWarning, match="into 0.weight off its mask. They are dropped"), plain_view(module):
        nn.init.constant_(module[0].weight, 0.05)
    torch.testing.assert_close(module[0].weight, 0.05 * mask.double())


def test_optimizer_step_in_the_view_trains_what_was_written():
    """Written values and gradients count before the step; after it, parameters that are still held show its result."""
    module, plain = net("plain"), None
    backward(module)
    kept, plain = masks(module), merge_(copy.deepcopy(module))
    plain.zero_grad()
    backward(plain)
    with plain_view(module):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for parameter in module.parameters():
            parameter.grad.clamp_(-0.01, 0.01)
        optimizer.step()
        module[0].weight.data.clamp_(-0.2, 0.2)
    for name, mask in kept.items():
        parameter = plain.get_parameter(name)
        expected = (parameter - 0.1 * parameter.grad.clamp(-0.01, 0.01)) * mask
        expected = expected.clamp(-0.2, 0.2) if name == "0.weight" else expected
        torch.testing.assert_close(module.get_submodule(name[0]).weight, expected)


def test_tied_weight_is_written_once(zoo):
    module = sparsify(zoo, sparsity=0.5)
    with plain_view(module):
        module.decoder.weight.data.zero_()
    assert not module.encoder.weight.any()


def test_assigned_parameter_is_taken_over():
    module = net()
    mask, new = masks(module)["0.weight"], nn.Parameter(torch.randn(8, 5, dtype=torch.float64))
    with plain_view(module):
        module[0].weight = nn.Parameter(new * mask)
    torch.testing.assert_close(module[0].weight, new * mask)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda layer: layer.weight.data.fill_(torch.nan), "Infinities or NaN were written into 0.weight"),
        (lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros(4, 5))), r"was given the shape \(4, 5\)"),
        (lambda layer: delattr(layer, "weight"), "0.weight was removed, pruned or parametrized while it is sparse"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_module_is_sparse_again(write, says):
    module = net()
    before = tensors(module)
    with pytest.raises(SignInError, match=says), plain_view(module):
        write(module[0])
    assert all(map(torch.equal, tensors(module), before))


def test_lost_weights_can_be_read():
    """A run that diverged: what is not finite already is no error, and is left alone."""
    module = net()
    factor = sparse_weights(module)["0.weight"].factors[0]
    factor.data[0] = torch.nan
    with plain_view(module):
        module[2].weight.data.clamp_(-0.1, 0.1)
    assert factor.isnan().sum() == 1


def test_write_survives_an_exception():
    module = net()

    def fail() -> None:
        with plain_view(module):
            module[0].weight.data.zero_()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not module[0].weight.any()
