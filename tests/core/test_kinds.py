"""Which weights of other people's layers multiply activations, and which of their axes is the input."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn as pyg
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from lightning_signin import MaskUpdates, add_kind, effective_weights, masks, plain_view, sparsify
from lightning_signin.core import kinds
from lightning_signin.core.layout import PLAIN, Layout
from lightning_signin.core.matrices import dense_matrices
from lightning_signin.core.selection import layout_of, select_weights
from lightning_signin.core.weights import sparse_weights
from tests import reference
from tests.families import gpt_oss, llama4, mixtral


def cells() -> nn.Module:
    return nn.ModuleList([nn.RNNCell(3, 4), nn.LSTMCell(3, 4), nn.GRUCell(3, 4)])


IO, STACKED, TURNED = Layout("io"), Layout("eoi", 4), Layout("eio", 4)
# What is selected by default of a layer, and how it is stored.
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Layout]]] = {
    "Linear": (lambda: nn.Linear(3, 4), {"weight": PLAIN}),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 5), {"weight": PLAIN}),
    "ConvTranspose": (lambda: nn.ConvTranspose1d(6, 4, 3, groups=2), {"weight": Layout("io", 2)}),
    "LSTM": (
        lambda: nn.LSTM(3, 4, proj_size=2),
        dict.fromkeys(["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"], PLAIN),
    ),
    "cells": (cells, {f"{i}.weight_{part}": PLAIN for i in range(3) for part in ("ih", "hh")}),
    "attention": (lambda: nn.MultiheadAttention(4, 2), dict.fromkeys(["in_proj_weight", "out_proj.weight"], PLAIN)),
    "split attention": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True),
        dict.fromkeys(["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"], PLAIN),
    ),
    "Conv1D of transformers": (lambda: Conv1D(4, 3), {"weight": IO}),
    "experts": (
        lambda: mixtral().model.layers[0].mlp,
        {"gate.weight": PLAIN, "experts.gate_up_proj": STACKED, "experts.down_proj": STACKED},
    ),
    "experts with biases": (
        lambda: gpt_oss().model.layers[0].mlp,
        {"router.weight": PLAIN, "experts.gate_up_proj": TURNED, "experts.down_proj": TURNED},
    ),
    "experts of Llama 4": (
        lambda: llama4().layers[0].feed_forward.experts,
        {"gate_up_proj": TURNED, "down_proj": TURNED},
    ),
    "Linear of PyTorch Geometric": (lambda: pyg.Linear(3, 4), {"weight": PLAIN}),
    "HeteroLinear": (lambda: pyg.HeteroLinear(3, 5, num_types=4), {"weight": TURNED}),
    "GCNConv": (lambda: pyg.GCNConv(3, 4), {"lin.weight": PLAIN}),
    "RGCNConv": (lambda: pyg.RGCNConv(3, 5, num_relations=4), {"weight": TURNED, "root": IO}),
    "GatedGraphConv": (
        lambda: pyg.GatedGraphConv(5, num_layers=4),
        {"weight": TURNED, "rnn.weight_ih": PLAIN, "rnn.weight_hh": PLAIN},
    ),
    "GCN2Conv": (lambda: pyg.GCN2Conv(4, 0.1, shared_weights=False), {"weight1": IO, "weight2": IO}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_a_kind_are_selected_with_their_axes(name):
    make, expected = LAYERS[name]
    module = nn.ModuleList([make(), nn.Embedding(5, 4), nn.LayerNorm([4, 4])])
    selected = select_weights(module)
    assert {name.removeprefix("0."): layout_of(owners) for name, owners in selected.items()} == expected
    sparse = sparsify(module, sparsity=0.5)
    assert {name.removeprefix("0."): w.layout for name, w in sparse_weights(sparse).items()} == expected
    assert dense_matrices(sparse) == {}


def test_every_row_of_the_table_names_a_class_that_is_there():
    for kind in kinds.KINDS:
        if isinstance(kind, str):
            module, _, name = kind.rpartition(".")
            assert isinstance(getattr(__import__(module, fromlist=[name]), name), type), kind


class Turned(nn.Module):
    """A linear layer whose weight is stored the other way round."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(linear.weight.detach().T.clone()), nn.Parameter(linear.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.bias


@pytest.fixture
def turned_is_known():
    add_kind(Turned, matrix="io")
    yield
    del kinds.KINDS[Turned]


def conv1d(linear: nn.Linear) -> nn.Module:
    layer = Conv1D(linear.out_features, linear.in_features)
    layer.weight.data, layer.bias.data = linear.weight.detach().T.clone(), linear.bias.detach().clone()
    return layer


def pairs(other: Callable[[nn.Linear], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Two equal networks, one with weights stored the other way round."""
    plain = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8)).double()
    return plain, nn.Sequential(*(other(copy.deepcopy(p)) if isinstance(p, nn.Linear) else p for p in plain)).double()


STRUCTURES = ["unstructured", "2:4", "2:4-cap", "4x8-block", "constant-fan-in"]


@pytest.mark.usefixtures("turned_is_known")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("distribution", ["balanced", "erk", "uniform", "global"])
@pytest.mark.parametrize("other", [Turned, conv1d])
def test_masks_do_not_depend_on_how_a_weight_is_stored(structure, distribution, other):
    found = []
    for net in pairs(other):
        sparsify(net, sparsity=0.75, mask="magnitude", distribution=distribution, structure=structure)
        found.append(list(masks(net).values()))
    for plain, turned in zip(*found, strict=True):
        assert torch.equal(plain, turned.T)


@pytest.mark.usefixtures("turned_is_known")
@pytest.mark.parametrize("rule", ["rigl", "srigl"])
@pytest.mark.parametrize("structure", ["2:4", None])
def test_updates_do_not_depend_on_how_a_weight_is_stored(rule, structure):
    structure = "constant-fan-in" if rule == "srigl" else structure or "unstructured"
    x, found = torch.randn(40, 32, 16).double(), []
    for net in pairs(Turned):
        sparsify(net, sparsity=0.75, mask="magnitude", distribution="uniform", structure=structure)
        with plain_view(net):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        updates = MaskUpdates(net, rule, [optimizer], total_steps=400, structure=structure)
        updates.steps = range(0, 40, 10)
        updates._arm()
        for batch in x:
            updates.before_batch()
            optimizer.zero_grad()
            (net(batch) - 1).square().mean().backward()
            updates.before_step(optimizer)
            optimizer.step()
        found.append((list(masks(net).values()), list(effective_weights(net).values())))
    for (plain, theta), (turned, other) in zip(zip(*found[0], strict=True), zip(*found[1], strict=True), strict=True):
        assert torch.equal(plain, turned.T)
        assert torch.allclose(theta, other.T)


def test_experts_have_masks_like_layers_of_their_own():
    experts, router = mixtral().model.layers[0].mlp.experts, nn.Linear(32, 48, bias=False)
    stacked = nn.ModuleDict({"experts": experts, "dense": router})
    apart = nn.ModuleDict({name.replace(".", "_"): linear_of(part) for name, part in split(stacked).items()})
    for distribution in ("balanced", "erk", "uniform"):
        together = sparsify(copy.deepcopy(stacked), sparsity=0.9, mask="magnitude", distribution=distribution)
        single = sparsify(copy.deepcopy(apart), sparsity=0.9, mask="magnitude", distribution=distribution)
        counts = {name: int(mask.sum()) for name, mask in masks(together).items()}
        alone = {name: int(mask.sum()) for name, mask in masks(single).items()}
        for name, count in counts.items():
            of_it = [n for key, n in alone.items() if key.startswith(name.replace(".", "_"))]
            assert abs(count - sum(of_it)) <= 1 + len(of_it) / 2  # each is rounded to whole weights


def split(module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}_{i}": part
        for name, weight in module.named_parameters()
        for i, part in enumerate(weight.detach() if weight.ndim == 3 else weight.detach()[None])
    }


def linear_of(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


def test_groups_of_four_of_experts_follow_their_inputs():
    mlp = sparsify(gpt_oss().model.layers[0].mlp, sparsity=0.5, structure="2:4")
    for name, mask in masks(mlp).items():
        rows = mask.transpose(1, 2) if mask.ndim == 3 else mask
        assert reference.groups(rows.reshape(-1, rows.shape[-1]).numpy(), 4) == [2] * (mask.numel() // 4), name


def test_grouped_transposed_convolution_has_one_fan_in_for_each_of_its_outputs():
    net = sparsify(nn.ConvTranspose2d(8, 12, 3, groups=2, bias=False), sparsity=0.75, structure="constant-fan-in")
    ones = torch.ones(1, 8, 1, 1)
    with torch.no_grad():
        reached = F.conv_transpose2d(ones, masks(net)["weight"].float(), groups=2).sum((0, 2, 3))
    assert reached.tolist() == [9.0] * 12  # of 4 inputs · 9 places


def test_axes_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match=r"`axes` must be one of 'oi', 'io', 'eoi', 'eio'; got 'hw'\. 'o' stands for"):
        add_kind(Turned, matrix="hw")
    assert Turned not in kinds.KINDS


@pytest.mark.parametrize("axes", ["oi", "io", "eoi", "eio"])
def test_layout_reads_and_writes_back(axes):
    weight = torch.arange(4 * 6 * 10 * 3).view(4, 6, 10, 3)
    layout = Layout(axes, 1 if axes == "oi" else 2 if axes == "io" else 4)
    read = layout.read(weight)
    assert tuple(read.shape) == layout.shape(tuple(weight.shape))
    assert torch.equal(layout.write(read), weight)
    number, one = layout.layers(tuple(weight.shape))
    assert number * torch.Size(one).numel() == weight.numel()


def test_transformers_is_not_needed():
    assert transformers.__name__ not in vars(kinds)
