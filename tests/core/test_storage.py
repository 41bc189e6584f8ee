"""Values on a mask: packing, gradients, and where the index goes."""

import copy

import pytest
import torch
from torch import nn

from lightning_signin import sparsify
from lightning_signin.core.compact import Compact
from lightning_signin.core.masked import Masked, SignIn
from lightning_signin.core.storage import Dense, make_storage
from lightning_signin.core.weights import sparse_weights
from tests import reference

STORAGES = pytest.mark.parametrize("storage", [Compact, Dense])
SHAPES = pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 3, 2)])


def random_mask(shape: tuple[int, ...], density: float = 0.4) -> torch.Tensor:
    mask = torch.rand(shape) < density
    mask.view(-1)[0] = True
    return mask


@STORAGES
@SHAPES
def test_storage_round_trips(storage, shape):
    mask, full = random_mask(shape), torch.randn(shape, dtype=torch.float64)
    stored = storage(mask)
    values = stored.pack(full)
    masked = torch.where(mask, full, 0)
    assert torch.equal(stored.unpack(values), masked)
    assert torch.equal(stored.pack(stored.unpack(values)), values)
    assert torch.equal(stored.mask, mask)
    assert stored.shape == mask.shape
    assert stored.active == int(mask.sum())


@SHAPES
def test_compact_unpack_equals_writing_one_by_one(shape):
    mask = random_mask(shape)
    values = torch.randn(int(mask.sum()), dtype=torch.float64)
    assert torch.equal(Compact(mask).unpack(values), reference.unpack(values.tolist(), mask))


@STORAGES
def test_storage_packs_in_index_order_whatever_the_memory_format(storage):
    full = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    mask = random_mask((4, 3, 2, 2)).to(memory_format=torch.channels_last)
    assert torch.equal(storage(mask).unpack(storage(mask).pack(full)), full * mask)


@STORAGES
@pytest.mark.parametrize("masked", [float("inf"), float("nan")])
def test_storage_drops_masked_infinities(storage, masked):
    mask = random_mask((3, 4))
    full = torch.where(mask, 1.5, masked)
    assert torch.equal(storage(mask).unpack(storage(mask).pack(full)), 1.5 * mask)


@STORAGES
def test_storage_does_not_share_memory_with_the_mask_or_the_weight(storage):
    mask, full = torch.ones(3, 3, dtype=torch.bool), torch.ones(3, 3)
    stored = storage(mask)
    values = stored.pack(full)
    mask.zero_(), full.zero_()
    assert stored.active == 9
    assert values.eq(1).all()


def test_compact_gradient_is_a_gather():
    mask, gradient = random_mask((3, 4)), torch.randn(3, 4, dtype=torch.float64)
    values = torch.randn(int(mask.sum()), dtype=torch.float64, requires_grad=True)
    (Compact(mask).unpack(values) * gradient).sum().backward()
    assert torch.equal(values.grad, gradient[mask])


@STORAGES
@pytest.mark.parametrize("kind", [SignIn, Masked])
def test_parametrization_derivatives_are_right(storage, kind):
    parametrization = kind(storage(random_mask((3, 4))))
    factors = [f.requires_grad_() for f in parametrization.right_inverse(torch.randn(3, 4, dtype=torch.float64))]
    assert torch.autograd.gradcheck(parametrization, factors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(parametrization, factors)


@STORAGES
@pytest.mark.parametrize(
    "move", [nn.Module.double, nn.Module.half, lambda m: m.to(torch.bfloat16), lambda m: m.type(torch.float16)]
)
def test_storage_follows_a_module_without_being_cast(storage, move):
    net = sparsify(nn.Linear(5, 4), sparsity=0.5, storage=storage.name)
    before = copy.deepcopy(next(iter(sparse_weights(net).values())).storage)
    move(net)
    after = net.parametrizations.weight[0].storage
    tensor = "index" if storage is Compact else "bits"
    assert getattr(after, tensor).dtype == getattr(before, tensor).dtype
    assert torch.equal(after.mask, before.mask)
    assert net.weight.dtype == net.bias.dtype != torch.float32
    assert torch.equal(net.weight != 0, before.mask)


@STORAGES
def test_storage_survives_to_empty(storage):
    net = sparsify(nn.Linear(5, 4), sparsity=0.5, storage=storage.name)
    mask = net.parametrizations.weight[0].storage.mask.clone()
    net.to_empty(device="cpu")
    assert torch.equal(net.parametrizations.weight[0].storage.mask, mask)


@STORAGES
def test_storage_is_copied_with_its_module(storage):
    net = sparsify(nn.Linear(5, 4), sparsity=0.5, storage=storage.name)
    twin = copy.deepcopy(net)
    mine, its = (n.parametrizations.weight[0].storage for n in (net, twin))
    assert torch.equal(mine.mask, its.mask)
    assert mine is not its
    tensor = "index" if storage is Compact else "bits"
    assert getattr(mine, tensor).data_ptr() != getattr(its, tensor).data_ptr()


@STORAGES
def test_storage_is_no_buffer_no_parameter_and_not_in_the_state(storage):
    net = sparsify(nn.Linear(5, 4), sparsity=0.5, storage=storage.name)
    assert list(net.buffers()) == []
    assert all(parameter.is_floating_point() for parameter in net.parameters())
    assert list(net.state_dict()) == ["weight", "bias"]
    size = sum(parameter.numel() for parameter in net.parametrizations.parameters())
    assert size == (2 * 10 if storage is Compact else 2 * 20)


@pytest.mark.parametrize(("active", "name"), [(1, "compact"), (10, "compact"), (11, "dense"), (20, "dense")])
def test_auto_storage_is_compact_up_to_half_density(active, name):
    mask = torch.arange(20).view(4, 5) < active
    assert make_storage("auto", mask).name == name
    assert make_storage("compact", mask).name == "compact"
    assert make_storage("dense", mask).name == "dense"
