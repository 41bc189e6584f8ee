"""The verbs: merging changes no output bit, rescaling changes θ by rounding only."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from lightning_signin import effective_weights, masks, merge_, rescale_, sparsify
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sign_in_weights, sparse_weights

VARIANTS = pytest.mark.parametrize(
    "options",
    [{"storage": s, "parametrization": r} for s in ("compact", "dense") for r in ("sign-in", "plain")],
    ids=["compact", "compact-masked", "dense", "dense-masked"],
)
STORAGES = pytest.mark.parametrize("storage", ["compact", "dense"])
EVERY = ["*in_proj_weight", "*"]


def disturb(net: nn.Module) -> None:
    """Move the active entries of the factors away from their scaling, as training does."""
    with torch.no_grad():
        for weight in sparse_weights(net).values():
            for factor in weight.factors:
                factor.mul_(1 + 0.2 * torch.randn_like(factor))


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()


@VARIANTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_merge_changes_no_output_bit(zoo, images, dtype, options):
    net, images = sparsify(zoo.to(dtype), sparsity=0.7, include=EVERY, **options), images.to(dtype)
    disturb(net)
    net.eval()
    before, state = net(images), net.state_dict()
    merge_(net)
    assert torch.equal(net(images), before)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@VARIANTS
def test_merge_leaves_nothing_behind(zoo, options):
    plain = copy.deepcopy(zoo)
    merge_(sparsify(zoo, sparsity=0.7, include=EVERY, **options))
    assert [name for name, _ in zoo.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for module, original in zip(zoo.modules(), plain.modules(), strict=True):
        assert type(module) is type(original)
        assert list(module._parameters) == list(original._parameters)
        for hooks in ("_state_dict_hooks", "_load_state_dict_pre_hooks", "_buffers", "_modules"):
            assert list(getattr(module, hooks)) == list(getattr(original, hooks))
    assert all(parameter.is_leaf and not parameter.is_inference() for parameter in zoo.parameters())
    pickle.dumps(zoo)
    assert masks(sparsify(zoo, sparsity=0.5))  # it can be made sparse again


def test_merge_ties_tied_weights_again(zoo):
    merge_(sparsify(zoo, sparsity=0.7))
    assert zoo.encoder.weight is zoo.decoder.weight
    assert zoo.first is zoo.again


@VARIANTS
@pytest.mark.parametrize("frozen", [True, False])
def test_merge_keeps_requires_grad(options, frozen):
    net = sparsify(two_layers(), sparsity=0.7, **options)
    net[0].parametrizations.weight.requires_grad_(not frozen)
    merge_(net)
    assert [parameter.requires_grad for parameter in net.parameters()] == [not frozen, True, True, True]


def test_merge_of_a_plain_module_does_nothing():
    net = two_layers()
    parameters = list(net.parameters())
    assert all(a is b for a, b in zip(parameters, merge_(net).parameters(), strict=True))


@STORAGES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_rescale_restores_the_scaling_and_keeps_theta(zoo, storage, dtype, tolerance):
    net = sparsify(zoo.to(dtype), sparsity=0.7, beta={"first*": 0.5, "*": 3.0}, storage=storage)
    disturb(net)
    before, parameters = effective_weights(net), list(net.parameters())
    assert rescale_(net) is net
    for name, weight in sign_in_weights(net).items():
        torch.testing.assert_close(weight.effective(), before[name], rtol=tolerance, atol=0)
        beta, mask = 0.5 if name == "first.weight" else 3.0, weight.storage.mask
        expected = torch.full((int(mask.sum()),), beta, dtype=dtype) if storage == "compact" else beta * mask.to(dtype)
        torch.testing.assert_close(scaling(*weight.factors), expected)
    # The same objects: optimizers and DDP hold on to them.
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))


def test_rescale_leaves_plain_masked_weights_alone():
    net = sparsify(two_layers(), sparsity=0.7, parametrization="plain")
    before = copy.deepcopy(list(net.parameters()))
    rescale_(net)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_beta_of_the_first_matching_pattern_wins():
    net = sparsify(two_layers(), sparsity=0.5, beta={"0.*": 2.0, "*": 5.0})
    assert {name: weight.parametrization.beta for name, weight in sign_in_weights(net).items()} == {
        "0.weight": 2.0,
        "1.weight": 5.0,
    }
    with pytest.raises(ValueError, match=r"`beta` pattern '1\*' has no effect: earlier ones match all"):
        sparsify(two_layers(), beta={"0.*": 2.0, "*": 5.0, "1*": 9.0})


A_MASK, B_MASK = torch.eye(5, 6, dtype=torch.bool), torch.eye(4, 5, dtype=torch.bool)
GIVEN = {"0.weight": A_MASK, "1.weight": B_MASK}
MUST_BE = "`mask` of 0.weight must be a bool tensor of shape (5, 6) that keeps at least one, got "


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"beta": {"0.*": 2.0}}, "`beta` has no pattern for 1.weight. End it with a default, '*': value."),
        ({"beta": {"*": 1.0, "2*": 2.0}}, "`beta` pattern '2*' matches no sparse weight of: 0.weight, 1.weight."),
        ({"beta": {"0*": 1.0, "*": -1.0}}, "`beta` must be above 0, got -1.0."),
        ({"storage": "sparse"}, "`storage` must be one of 'auto', 'compact', 'dense'; got 'sparse'."),
        ({"sparsity": 90}, "`sparsity` must be in [0, 1), got 90."),
        ({"mask": "snop"}, "`mask` must be one of 'random', 'magnitude'"),
        ({"mask": {"0.weight": A_MASK}}, "`mask` must have one mask for each selected weight, and 1.weight has none."),
        ({"mask": {**GIVEN, "2.weight": B_MASK}}, "and 2.weight is not a selected weight."),
        ({"mask": {**GIVEN, "0.weight": A_MASK.T}}, MUST_BE + "torch.bool, shape (6, 5), 5 kept."),
        ({"mask": {**GIVEN, "0.weight": A_MASK.float()}}, MUST_BE + "torch.float32, shape (5, 6), 5 kept."),
        ({"mask": {**GIVEN, "0.weight": A_MASK & False}}, MUST_BE + "torch.bool, shape (5, 6), 0 kept."),
    ],
)
def test_sparsify_refuses_and_leaves_the_module_as_it_was(options, text):
    net = two_layers()
    parameters = list(net.parameters())
    with pytest.raises(ValueError, match=re.escape(text)):
        sparsify(net, **options)
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))


def test_sparsify_refuses_a_sparse_module():
    net = sparsify(two_layers(), sparsity=0.5)
    with pytest.raises(ValueError, match=r"The module is sparse already\. Call `merge_` first to make it plain again"):
        sparsify(net, sparsity=0.5)


@VARIANTS
def test_masks_and_effective_weights_are_copies_of_what_the_module_uses(options):
    net, plain = two_layers(), None
    plain = copy.deepcopy(net)
    sparsify(net, mask=GIVEN, **options)
    kept, thetas = masks(net), effective_weights(net)
    assert all(torch.equal(kept[name], GIVEN[name]) for name in GIVEN)
    for name, theta in thetas.items():
        torch.testing.assert_close(theta, plain.get_parameter(name) * GIVEN[name], rtol=1e-14, atol=0)
        assert torch.equal(theta, net.get_submodule(name[0]).weight)
    for tensor in [*kept.values(), *thetas.values()]:
        tensor.zero_()
    assert all(mask.any() for mask in masks(net).values())
    assert all(theta.any() for theta in effective_weights(net).values())
