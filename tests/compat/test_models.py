"""Twenty networks of torchvision and timm: one training step each, with and without sparse weights."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from lightning_signin import masks, merge_, plain_view, rescale_, sparsify
from tests.small import copies, differing

# The side of the images in pixels, and what makes the network small.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "torchvision resnet18": (32, {}),
    "torchvision mobilenet_v3_small": (32, {}),
    "torchvision shufflenet_v2_x0_5": (32, {}),
    "torchvision squeezenet1_1": (32, {}),
    "torchvision mnasnet0_5": (32, {}),
    "torchvision regnet_y_400mf": (32, {}),
    "resnet10t": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "efficientnet_b0": (32, {}),
    "regnetx_002": (32, {}),
    "convnext_atto": (32, {}),
    "ghostnet_050": (32, {}),
    "vit_tiny_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "deit_tiny_distilled_patch16_224": (32, {"img_size": 32, "depth": 2}),
    "swin_tiny_patch4_window7_224": (
        32,
        {"img_size": 32, "window_size": 4, "depths": (1, 1, 1, 1), "embed_dim": 24},
    ),
    "mixer_s32_224": (64, {"img_size": 64}),
    "gmlp_ti16_224": (32, {"img_size": 32}),
    "levit_conv_128s": (64, {"img_size": 64}),
    "tf_efficientnetv2_b0": (32, {}),
    "tiny_vit_5m_224": (64, {"depths": (1, 1, 1, 1)}),
}


def made(name: str) -> nn.Module:
    source, _, model = name.rpartition(" ")
    options = {"num_classes": 10, **NETWORKS[name][1]}
    torch.manual_seed(1)
    return torchvision.models.get_model(model, **options) if source else timm.create_model(model, **options)


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
    x = torch.randn(2, 3, NETWORKS[name][0], NETWORKS[name][0])
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


def test_there_are_twenty():
    assert len(NETWORKS) == 20
