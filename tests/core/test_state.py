"""The plain state dict, both ways: against the state dict of a copy that was never sparse."""

import copy
import io

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn

from lightning_signin import effective_weights, masks, merge_, sparsify
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sign_in_weights, sparse_weights

VARIANTS = pytest.mark.parametrize(
    "options",
    [{"storage": s, "parametrization": r} for s in ("compact", "dense") for r in ("sign-in", "plain")],
    ids=["compact", "compact-masked", "dense", "dense-masked"],
)
SPARSE = ["conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "first.weight", "encoder.weight"]


def sparse_copy(net: nn.Module, **options: object) -> nn.Module:
    return sparsify(copy.deepcopy(net), sparsity=0.7, include=["*in_proj_weight", "*"], **options)


def train(net: nn.Module, images: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()


def described(state: dict) -> list[tuple]:
    return [(key, value.shape, value.dtype, value.requires_grad) for key, value in state.items()]


@VARIANTS
def test_state_looks_like_a_plain_one_before_during_and_after_training(zoo, images, options):
    net, plain = sparse_copy(zoo, **options), zoo.state_dict()
    assert list(masks(net)) == SPARSE
    for _ in range(2):
        state = net.state_dict()
        assert described(state) == described(plain)
        assert state._metadata == plain._metadata
        assert described(net.state_dict(prefix="model.")) == described(zoo.state_dict(prefix="model."))
        train(net, images)
    assert list(merge_(net).state_dict()) == list(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_state_has_the_dtype_of_the_model(zoo, dtype):
    net = sparse_copy(zoo.to(dtype))
    assert described(net.state_dict()) == described(zoo.state_dict())


@VARIANTS
def test_state_loads_strict_into_the_plain_model(zoo, images, options):
    net = sparse_copy(zoo, **options)
    train(net, images)
    zoo.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(zoo(images), net(images))
    assert all(torch.equal(zoo.get_parameter(name), theta) for name, theta in effective_weights(net).items())


@VARIANTS
@pytest.mark.parametrize("assign", [False, True])
def test_plain_state_loads_into_the_sparse_model(zoo, images, options, assign):
    net = sparse_copy(zoo, beta=2.0, **options)
    train(net, images)
    kept, pretrained = masks(net), type(zoo)().double()
    assert not any(net.load_state_dict(pretrained.state_dict(), assign=assign))
    for name, weight in sparse_weights(net).items():
        assert torch.equal(weight.storage.mask, kept[name])
        torch.testing.assert_close(weight.effective(), pretrained.get_parameter(name) * kept[name], rtol=1e-14, atol=0)
        assert all(isinstance(factor, nn.Parameter) and factor.requires_grad for factor in weight.factors)
    for weight in sign_in_weights(net).values():
        active = weight.storage.unpack(scaling(*weight.factors))[kept[weight.name]]
        torch.testing.assert_close(active, torch.full_like(active, 2.0))
    assert torch.equal(net.norm.weight, pretrained.norm.weight)
    train(net, images)


def test_zeros_of_a_loaded_state_are_no_mask(zoo):
    net = sparse_copy(zoo)
    kept, state = masks(net), net.state_dict()
    net.load_state_dict({key: torch.zeros_like(value) for key, value in state.items()})
    assert all(torch.equal(mask, kept[name]) for name, mask in masks(net).items())
    assert net.first.weight.eq(0).all()


def test_loading_reports_plain_names_only(zoo):
    net, before = sparse_copy(zoo), effective_weights(sparse_copy(zoo))
    state = zoo.state_dict()
    del state["encoder.weight"], state["conv.weight"], state["conv.bias"]
    state |= {"first.weight": torch.zeros(3, 3), "extra": torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: ") as caught:
        net.load_state_dict(state)
    text = str(caught.value)
    for part in ('"encoder.weight"', '"conv.weight"', 'Unexpected key(s) in state_dict: "extra"'):
        assert part in text
    assert "size mismatch for first.weight: copying a param with shape (3, 3) from checkpoint" in text
    assert "parametrizations" not in text
    assert "original" not in text
    torch.testing.assert_close(effective_weights(net)["conv.weight"], before["conv.weight"])
    torch.testing.assert_close(effective_weights(net)["first.weight"], before["first.weight"])


@VARIANTS
def test_loading_returns_the_keys_that_the_plain_model_returns(zoo, options):
    state = zoo.state_dict()
    del state["encoder.weight"], state["attention.in_proj_weight"], state["norm.bias"]
    state["extra"] = torch.zeros(1)
    expected = copy.deepcopy(zoo).load_state_dict(state, strict=False)
    result = sparse_copy(zoo, **options).load_state_dict(state, strict=False)
    assert sorted(result.missing_keys) == sorted(expected.missing_keys)
    assert result.unexpected_keys == expected.unexpected_keys


@VARIANTS
def test_writing_into_a_state_raises(zoo, options):
    net = sparse_copy(zoo, **options)
    state = net.state_dict()
    for name in SPARSE:
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            state[name].mul_(0.5)
    assert copy.deepcopy(state)["first.weight"].zero_().eq(0).all()  # a copy of the state is anyone's own
    assert not net.first.weight.eq(0).all()


@VARIANTS
def test_a_clone_of_a_state_is_penalized_towards_and_assigned(zoo, images, options):
    """As the README says; the values themselves can only be read."""
    net = sparse_copy(zoo, **options)
    state = net.state_dict()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        (net.first.weight * state["first.weight"]).sum().backward()
    with pytest.raises(RuntimeError, match="on inference tensor outside InferenceMode is not allowed"):
        copy.deepcopy(zoo).load_state_dict(state, assign=True)
    own = {name: value.clone() for name, value in state.items()}
    (net.first.weight * own["first.weight"]).sum().backward()
    zoo.load_state_dict(own, assign=True)
    assert torch.equal(zoo(images), net(images))


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_state_with_keep_vars_carries_gradients(zoo, storage):
    net, upstream = sparse_copy(zoo, storage=storage), torch.randn(8, 8, dtype=torch.float64)
    weight = sparse_weights(net)["first.weight"]
    m, w = weight.factors
    (net.state_dict(keep_vars=True)["first.weight"] * upstream).sum().backward()
    # The chain rule of the product: ∂/∂m = w ⊙ upstream, ∂/∂w = m ⊙ upstream.
    torch.testing.assert_close(m.grad, w.detach() * weight.storage.pack(upstream))
    torch.testing.assert_close(w.grad, m.detach() * weight.storage.pack(upstream))
    assert net.state_dict(keep_vars=True)["conv.bias"] is net.conv.bias


@VARIANTS
def test_saved_state_is_read_with_weights_only(zoo, images, options):
    net, file = sparse_copy(zoo, **options), io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    zoo.load_state_dict(torch.load(file, weights_only=True), assign=True)
    assert torch.equal(zoo(images), net(images))
    train(zoo, images, steps=1)


@VARIANTS
def test_deep_copy_is_independent_and_merges(zoo, images, options):
    net = sparse_copy(zoo, **options)
    twin, before = copy.deepcopy(net), net(images)
    train(twin, images)
    output = twin(images)
    assert described(twin.state_dict()) == described(zoo.state_dict())
    merge_(twin)
    assert torch.equal(twin(images), output)
    assert twin.encoder.weight is twin.decoder.weight
    assert torch.equal(net(images), before)
    assert list(masks(net)) == SPARSE


def test_state_is_added_to_a_given_destination(zoo):
    expected = zoo.first.state_dict(destination={"earlier": torch.zeros(1)})
    net = sparsify(zoo.first, sparsity=0.5)
    assert list(net.state_dict(destination={"earlier": torch.zeros(1)})) == list(expected)


@pytest.mark.parametrize("average", [ModelEmaV2, ModelEmaV3])
def test_tool_that_averages_in_a_state_dict_gets_an_error(average):
    net = sparsify(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)), sparsity=0.5)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        average(net).update(net)


class Half(nn.Linear):
    """Saves in half precision."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].half()


class Kernel(nn.Linear):
    """Saves and loads the transpose, under another name."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "kernel"] = destination.pop(prefix + "weight").t()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel").t()
        super()._load_from_state_dict(state_dict, prefix, *args)


class Listed(nn.Linear):
    """Lists its own parameters."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination |= {f"{prefix}own.{name}": value.detach() for name, value in self._parameters.items()}


class Single(nn.Linear):
    """Saves its weight alone."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "w"] = self.weight.detach()


class More(nn.Linear):
    """Saves one tensor more, in the method that saves the children, too."""

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        state[kwargs.get("prefix", "") + "sum"] = state[kwargs.get("prefix", "") + "weight"].sum()
        return state


@VARIANTS
@pytest.mark.parametrize("kind", [Half, Kernel, Listed, Single, More])
def test_layers_that_save_themselves_save_the_plain_weight(kind, options):
    net = sparsify(nn.Sequential(kind(6, 5), nn.Linear(5, 4)), sparsity=0.5, **options)
    plain = merge_(copy.deepcopy(net))
    state, expected = net.state_dict(), plain.state_dict()
    assert described(state) == described(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert state._metadata == expected._metadata
    if kind is Kernel:
        other = nn.Sequential(kind(6, 5), nn.Linear(5, 4))
        net.load_state_dict(other.state_dict())
        torch.testing.assert_close(net[0].weight, other[0].weight * masks(net)["0.weight"])
