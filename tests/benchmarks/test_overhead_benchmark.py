"""That the variants whose steps are timed beside each other are the same network, and that the bars are read right."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.overhead.decoder import Decoder
from benchmarks.overhead.listing1 import make_listing1
from benchmarks.overhead.networks import OPTIMIZERS, batch_of
from benchmarks.overhead.steps import missed
from benchmarks.overhead.variants import VARIANTS, build, masks_of, train_step
from lightning_signin import sparsify
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sparse_weights


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))


@pytest.mark.parametrize("variant", ["sign-in", "whole weights", "plain masked", "listing 1", "torch prune"])
def test_every_masked_variant_starts_as_the_masked_network(net, variant):
    masks, x = masks_of(net, 0.2), torch.randn(2, 3, 6, 6)
    made, _ = build(variant, net, masks, OPTIMIZERS["sgd"])
    masked = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    torch.testing.assert_close(made(x), masked(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "ModelPruning"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_of_every_variant_train_all_parameters(net, variant, optimizer):
    made, opt = build(variant, net, masks_of(net, 0.2), OPTIMIZERS[optimizer])
    before = [parameter.clone() for parameter in made.parameters()]
    whole, of_optimizer = train_step(made, opt, torch.randn(4, 3, 6, 6), torch.randint(10, (4,)))
    assert 0 < of_optimizer < whole
    assert not any(map(torch.equal, before, made.parameters()))


def test_lightnings_pruning_keeps_as_many_weights(net):
    masks = masks_of(net, 0.2)
    made = VARIANTS["ModelPruning"](copy.deepcopy(net), masks)
    kept = sum(int(buffer.sum()) for name, buffer in made.named_buffers() if name.endswith("weight_mask"))
    assert abs(kept - sum(int(mask.sum()) for mask in masks.values())) <= len(masks)


def test_listing_1_has_the_factors_of_the_package_up_to_a_sign_and_rescales_to_them(net):
    masks = masks_of(net, 0.2)
    theirs = make_listing1(copy.deepcopy(net), masks)
    ours = sparsify(copy.deepcopy(net), mask=masks, storage="dense")
    for name, weight in sparse_weights(ours).items():
        layer = theirs.get_submodule(name.removesuffix(".weight"))
        mask = masks[name]
        torch.testing.assert_close((layer.m * layer.weight)[mask], weight.effective()[mask], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(scaling(layer.m, layer.weight), torch.ones_like(layer.m), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            layer.m.mul_(0.5), layer.weight.mul_(2)
        layer.rescale_mw()
        torch.testing.assert_close(scaling(layer.m, layer.weight), torch.ones_like(layer.m), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.m[mask], weight.factors[0][mask], rtol=1e-4, atol=1e-5)


def row(sign_in: float, network: str = "resnet18", samples: int = 2, density: float = 0.1, **ratios: float) -> dict:
    return {
        "row": {"network": network, "samples": samples, "density": density},
        "ratios": {"dense": 1.0, "sign-in": sign_in, "whole weights": 1.0, **ratios},
    }


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row(1.02), "met"),
        (row(1.04), "whole weights: 1.040 > 1.020"),
        (row(0.42, "mlp"), "met"),
        (row(0.43, "mlp"), "dense: 0.430 > 0.420"),
        (row(0.43, "mlp", density=0.2), "met"),
        (row(0.9, **{"listing 1": 1.0}), "met"),
        (row(0.5, "mlp", 128, **{"listing 1": 0.5}), "listing 1: 0.500 > 0.425"),
    ],
)
def test_bars(found, expected):
    assert missed(found) == expected


def test_decoder_sees_no_later_token():
    torch.manual_seed(0)
    net, (tokens, _) = Decoder(), batch_of("decoder", 1)
    changed = tokens.clone()
    changed[:, 200:] += 1
    with torch.no_grad():
        before, after = (net.norm(net.blocks(x + net.positions)) for x in (tokens, changed))
    assert torch.equal(before[:, :200], after[:, :200])
    assert not torch.equal(before[:, 200:], after[:, 200:])
