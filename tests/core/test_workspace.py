"""Lent memory: what the weight of a forward pass is made in, and that nobody sees it used again."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_signin import MaskUpdates, effective_weights, plain_view, sparsify
from lightning_signin.core.compact import Compact
from lightning_signin.core.layer_forward import READERS
from lightning_signin.core.weights import sparse_weights
from lightning_signin.core.workspace import Workspace
from lightning_signin.updates import Cosine, RigL


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10), nn.ReLU(), nn.Linear(10, 4)
    return sparsify(nn.Sequential(*layers), sparsity=0.8, storage="compact")


def seen_weights(net: nn.Module, x: Tensor) -> list[int]:
    """The addresses of the weights that one forward pass with gradient uses."""
    found: list[int] = []
    originals = F.linear, torch.conv2d

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in originals:
                found.append(args[1].data_ptr())
            return func(*args, **(kwargs or {}))

    with Seen():
        net(x).sum().backward()
    return found


def test_workspace_is_lent_again_only_when_no_view_and_no_graph_uses_it():
    workspace = Workspace()
    lent = workspace.lend(4, torch.float32)
    address = lent.data_ptr()
    view = lent.view(2, 2)[1]
    del lent
    assert workspace.lend(4, torch.float32).data_ptr() != address
    factor = torch.ones(2, requires_grad=True)
    product = (factor * view).sum()  # keeps the view for its gradient
    del view
    assert workspace.lend(4, torch.float32).data_ptr() != address
    product.backward()
    assert workspace.lend(4, torch.float32).data_ptr() != address, "one was kept already"


@pytest.mark.parametrize("changed", [(5, torch.float32), (4, torch.float64)])
def test_workspace_of_another_size_or_type_is_new_and_zero(changed):
    workspace = Workspace()
    workspace.lend(4, torch.float32).fill_(3)
    assert torch.equal(workspace.lend(*changed), torch.zeros(changed[0], dtype=changed[1]))


def test_steps_use_the_same_memory_for_each_weight(net):
    x = torch.randn(2, 3, 6, 6)
    first = seen_weights(net, x)
    assert len(set(first)) == 3
    assert seen_weights(net, x) == seen_weights(net, x) == first


def test_training_equals_training_without_lent_memory(net):
    x, twin, start = torch.randn(4, 3, 6, 6), copy.deepcopy(net), effective_weights(net)
    found = []
    for one in (net, twin):
        if one is twin:
            for layer in (net[0], net[3], net[5]):
                del type(layer).forward  # which the copy shares; torch's own is below
        with plain_view(one):
            optimizer = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
        updates = MaskUpdates(one, RigL(Cosine(2)), [optimizer], total_steps=8)
        for _ in range(8):
            updates.before_batch()
            optimizer.zero_grad()
            (one(x) + one(-x)).square().mean().backward()  # two graphs at once
            updates.before_step(optimizer)
            optimizer.step()
        found.append(effective_weights(one))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not all(torch.equal(found[0][name] != 0, start[name] != 0) for name in start), "no mask moved"


def test_writing_into_a_weight_from_outside_changes_nothing(net):
    x = torch.randn(2, 3, 6, 6)
    before = net(x).detach()
    for layer in (net[0], net[3]):
        layer.weight.data.add_(1.0)
        layer.weight.detach().add_(1.0)
        with torch.no_grad():
            layer.weight.add_(1.0)
    assert torch.equal(net(x), before)
    assert torch.equal(net(x), before)


def test_a_weight_that_is_kept_does_not_change_with_the_next_step(net):
    kept = net[3].weight
    before = kept.detach().clone()
    net(torch.randn(2, 3, 6, 6)).sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5)
    net(torch.randn(2, 3, 6, 6))
    assert torch.equal(kept, before)


def test_layers_of_other_classes_are_not_marked():
    class Writes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.weight.data.fill_(7.0)
            return super().forward(x)

    layer = sparsify(Writes(20, 5), sparsity=0.5)
    assert Writes not in READERS
    before = layer.state_dict()["weight"].clone()
    x = torch.randn(3, 20)
    expected = F.linear(x, before, layer.bias)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x), expected)


def test_checkpointed_forward_passes_agree(net):
    x = torch.randn(2, 3, 6, 6)
    gradients = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=False)):
        net.zero_grad()
        run(x).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(map(torch.equal, *gradients))


def test_evaluation_borrows_nothing_and_copies_share_nothing(net):
    x = torch.randn(2, 3, 6, 6)
    trained = seen_weights(net, x)
    twin = copy.deepcopy(net)
    assert not set(seen_weights(twin, x)) & set(trained)
    with torch.no_grad():
        net(x)
    gc.collect()
    assert seen_weights(net, x) == trained


def test_index_takes_half_the_bytes_and_is_saved_for_the_gradient():
    mask = torch.rand(6, 7) < 0.5
    storage = Compact(mask)
    assert storage.index.dtype == torch.int32
    values = torch.randn(storage.active, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(storage.unpack, values, check_forward_ad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.dtype) or t, lambda t: t):
        storage.unpack(values)
    assert saved == [torch.int32]


def test_moving_a_module_drops_the_lent_memory(net):
    x = torch.randn(2, 3, 6, 6)
    net(x).sum().backward()
    net.double()
    weights = [weight.effective() for weight in sparse_weights(net).values()]
    assert all(weight.dtype == torch.float64 for weight in weights)
    net(x.double()).sum().backward()


def test_layers_take_their_input_by_name(net):
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(net[0](input=x), net[0](x))
