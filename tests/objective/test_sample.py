"""The call for the first sample, cut from that for the batch."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_signin.objective.sample import one_sample, tensors_of

X, Y = torch.randn(5, 3, 4), torch.arange(1, 6)


class Called(nn.Module):
    """Calls a function of two arguments with a weight beside."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(4, 4), function

    def forward(self, x: Any, y: Any) -> Any:
        return self.function(self.fc, x, y)


def mean_loss(fc: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    scores = fc(x).mean(1)
    return nn.functional.cross_entropy(scores, y % 4), scores


@pytest.mark.parametrize(
    "function",
    [
        mean_loss,
        lambda fc, x, y: {"loss": fc(x).mean(), "scores": fc(x), "none": None, "words": ["a"]},
        lambda fc, x, y: fc(x).transpose(0, 1) + y.view(1, 5 if len(y) > 1 else 1, 1),  # (time, batch, features)
        lambda fc, x, y: fc(x).flatten(0, 1),  # the samples' tokens one after another
        lambda fc, x, y: (fc(x), fc.weight, y > 2, y.new_tensor(3)),
    ],
    ids=["loss first", "dict", "batch second", "flattened", "constants and bools"],
)
def test_outputs_of_the_sample_begin_those_of_the_batch(function):
    args, kwargs = one_sample(Called(function), ((X,), {"y": Y}))
    assert torch.equal(args[0], X[:1])
    assert torch.equal(kwargs["y"], Y[:1])


@pytest.mark.parametrize(
    ("function", "y"),
    [
        (lambda fc, x, y: fc(x).mean(), Y),
        (lambda fc, x, y: fc(x).flatten(1) @ fc(x).flatten(1).T, Y),
        (lambda fc, x, y: (fc(x) - fc(x).mean(0)) * y.view(-1, 1, 1), Y),
        (lambda fc, x, y: fc(x)[torch.arange(5)] + y.view(5, 1, 1), Y),
        (lambda fc, x, y: y @ fc(x).flatten(1), torch.randn(5, 5)),
        (lambda fc, x, y: [fc(x)] * len(y), Y),
        (lambda fc, x, y: object(), Y),
    ],
    ids=["loss alone", "contrastive", "batch mean", "fixed size", "matrix", "as many as samples", "object"],
)
def test_what_joins_samples_is_called_with_the_batch(function, y):
    call = ((X, y), {})
    assert one_sample(Called(function), call) is call


def test_a_mask_of_the_batchs_length_by_chance_is_not_cut():
    x, mask = torch.randn(3, 3, 4), torch.tensor([[0.0, -9, -9], [0, 0, -9], [0, 0, 0]])
    net = Called(lambda fc, x, mask: (mask.softmax(-1) @ x, fc(x)))
    call = ((x, mask), {})
    assert one_sample(net, call) is call


def test_a_list_of_images_is_not_cut_through_its_channels():
    convolution = nn.Conv2d(3, 2, 1)
    net = Called(lambda fc, x, y: [convolution(image[None]) for image in x])
    for images in ([torch.randn(3, 4, 4)], [torch.randn(3, 4, 4), torch.randn(3, 5, 5)]):
        call = ((images, None), {})
        assert one_sample(net, call) is call


def test_one_tensor_is_the_batch():
    net = Called(lambda fc, x, y: fc(x).mean())
    (x, words), _ = one_sample(net, ((X, ["any", "words"]), {}))
    assert torch.equal(x, X[:1])
    assert words == ["any", "words"]


@dataclass
class Output:
    loss: Tensor
    parts: Any


def test_tensors_of_are_found_in_every_container():
    loss, one, two = torch.tensor(1.0), torch.ones(2), torch.ones(1, 2)
    for output in (one, (one,), {"a": [one]}, Output(loss, {"b": (one, None)}), [Output(loss, one)]):
        assert [id(tensor) for tensor in tensors_of(output)] == [id(one)]
    assert tensors_of((two, {"x": one, "y": "text"}))[1] is one
    assert tensors_of(Output(loss, None)) == [loss]
    assert tensors_of(object()) == []
