"""The benchmark trains networks side by side: each must be the network that it would be alone."""

from itertools import pairwise

import pytest
import torch

from benchmarks import mnist1d_table
from benchmarks.stacked_training import Problem, Settings, StackedMLP, accuracies, train
from lightning_signin import effective_weights, masks
from lightning_signin.recipes.models import MLP


@pytest.fixture
def short():
    inputs = torch.randn(300, 40)
    return Problem((40, 60, 60, 10), 3, inputs, inputs[:, :10].argmax(1))


@pytest.mark.parametrize(
    ("method", "mask"), [("plain", "random"), ("mw", "random"), ("signin", "random"), ("signin", "snip")]
)
def test_stack_equals_single_networks(short, method, mask):
    settings = Settings(method, 0.9, 0.3, rescale_every=1, rescale_until=1.0, momentum="carry", mask=mask)
    together = train(settings, [3, 8], short)
    for position, seed in enumerate([3, 8]):
        alone = train(settings, [seed], short)
        for name, weight in effective_weights(alone).items():
            assert torch.allclose(weight[0], effective_weights(together)[name][position], atol=1e-5)


def test_methods_share_start_mask_and_batches(short):
    first, second = (train(Settings(method, 0.9, 0.0), [5], short) for method in ("plain", "signin"))
    for name, mask in masks(first).items():
        assert torch.equal(mask, masks(second)[name])
        assert torch.allclose(effective_weights(first)[name], effective_weights(second)[name], atol=1e-7)


def test_stacked_network_computes_what_the_recipes_mlp_does():
    stack, mlp, x = StackedMLP((40, 300, 300, 10), [1]), MLP([40, 300, 300, 10]), torch.randn(7, 40)
    for layer, weight, bias in zip(mlp.layers[::2], stack.weights, stack.biases, strict=True):
        layer.load_state_dict({"weight": weight.detach()[0], "bias": bias.detach()[0]})
    labels = mlp(x).argmax(1)
    assert accuracies(stack, x, labels) == [100.0]


def test_learning_rates_are_steps_of_at_most_a_quarter():
    rates = mnist1d_table.RATES
    assert all(1 < b / a <= 1.25 for a, b in pairwise(rates))
