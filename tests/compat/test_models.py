"""Twenty networks of torchvision and timm: one training step each, with and without sparse weights."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.model_zoo import NETWORKS, images, made
from lightning_signin import masks, merge_, plain_view, rescale_, sparsify
from tests.small import copies, differing


def step(net: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    torch.manual_seed(2)  # of dropout and stochastic depth
    out = net(x)
    outs = out if isinstance(out, tuple) else (out,)
    loss = sum(nn.functional.cross_entropy(part, torch.arange(len(x)) % 10) for part in outs)
    loss.backward()
    optimizer.step()
    return float(loss)


def trained(net: nn.Module, x: Tensor, before: Callable[[nn.Module], object] = id) -> tuple[nn.Module, float]:
    before(net)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return net, step(net.train(), x, optimizer)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_of_a_known_network(name):
    x = images(name)
    plain = made(name)
    twin, order = copy.deepcopy(plain), [parameter for parameter, _ in plain.named_parameters()]
    dense, loss = trained(copy.deepcopy(plain), x, lambda net: sparsify(net, sparsity=0.0, parametrization="plain"))
    expected, its_loss = trained(plain, x)
    assert loss == its_loss
    assert differing(copies(merge_(dense)), copies(expected)) == []

    net, loss = trained(copy.deepcopy(twin), x, lambda net: sparsify(net, sparsity=0.8))
    assert math.isfinite(loss)
    kept = masks(rescale_(net))
    state = copies(net)
    twin.load_state_dict(net.state_dict(), strict=True)
    merge_(net)
    assert [parameter for parameter, _ in net.named_parameters()] == order
    assert differing(copies(net), state) == []
    assert all(not state[weight][~mask].any() for weight, mask in kept.items())
    assert sum(int(mask.sum()) for mask in kept.values()) == round(0.2 * sum(mask.numel() for mask in kept.values()))
