"""Cut networks: found where they are cut, and only there."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_signin import masks as masks_of
from lightning_signin import sparsify
from lightning_signin.masks import TrainingData
from lightning_signin.objective.network import Network
from lightning_signin.units.connected import check_connected, cut_layers
from tests.graph_networks import Branches, Concat, Recurrent, build, weight_names


def network_of(net: nn.Module, *args: Tensor) -> Network:
    return Network(net.double().eval(), args, {}, weight_names(net))


def full(net: nn.Module) -> dict[str, Tensor]:
    return {name: torch.ones_like(net.get_parameter(name), dtype=torch.bool) for name in weight_names(net)}


def never() -> Network:
    raise AssertionError("The masks alone answer.")


def chain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def quiet(masks: dict[str, Tensor], network: Callable[[], Network]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_connected(masks, network)


def test_full_units_and_inputs_need_no_network():
    net, _ = build("residual")
    masks = {name: torch.zeros_like(mask) for name, mask in full(net).items()}
    for mask in masks.values():
        for place in range(max(mask.shape[:2])):
            mask[place % mask.shape[0], place % mask.shape[1], ...] = True
    quiet(masks, never)


def test_a_cut_chain_is_an_error_that_names_the_layers():
    net = chain()
    masks = full(net)
    masks["0.weight"][2:] = False
    masks["2.weight"][:, :2] = False
    masks["4.weight"][1] = False
    with pytest.raises(ValueError, match=r"cuts the network from input to output: no path leads through 0.weight, 2"):
        check_connected(masks, lambda: network_of(net, torch.rand(1, 3, dtype=torch.float64)))


def test_empty_units_alone_are_no_cut():
    net = chain()
    masks = full(net)
    masks["0.weight"][2:] = False
    masks["2.weight"][:, 0] = False
    quiet(masks, lambda: network_of(net, torch.rand(1, 3, dtype=torch.float64)))


def test_a_shortcut_keeps_the_network_whole_and_the_layer_is_named():
    net, args = build("residual")
    masks = full(net)
    masks["a.weight"][:] = False
    with pytest.warns(UserWarning, match="through the kept weights of a.weight: they carry no information"):
        check_connected(masks, lambda: network_of(net, *args))


def test_a_branch_that_the_next_layer_ignores_is_named():
    net, args = build("concat")
    masks = full(net)
    masks["grouped.weight"][:2] = False  # its first group reads only b
    with pytest.warns(UserWarning, match=r"kept weights of b.weight") as caught:
        check_connected(masks, lambda: network_of(net, *args))
    assert caught[0].filename == __file__
    masks["rest.weight"][:] = False
    masks["depthwise.weight"][:] = False
    with pytest.raises(ValueError, match=r"a\.weight"):
        check_connected(masks, lambda: network_of(net, *args))
    assert isinstance(net, Concat)


def test_cut_layers_are_those_without_gradients_in_a_positive_network():
    net, args = build("concat")
    for _ in range(20):
        masks = {n: (torch.rand(p.shape[:2]) < 0.25) for n, p in full(net).items()}
        masks = {n: mask.view(*mask.shape, *[1] * (full(net)[n].dim() - 2)) & full(net)[n] for n, mask in masks.items()}
        for name, mask in masks.items():
            net.get_parameter(name).data = (torch.rand(mask.shape, dtype=torch.float64) + 0.5) * mask
        net.zero_grad()
        net(*args).sum().backward()
        dead = [n for n, mask in masks.items() if not bool(((net.get_parameter(n).grad != 0) & mask).any())]
        assert sorted(cut_layers(network_of(net, *args), masks)) == sorted(dead)


def test_recurrence_counts_as_joining_everything():
    net = Recurrent()
    example = torch.rand(1, 7, 3, dtype=torch.float64)
    masks = {
        name: torch.ones(net.get_parameter(name).shape, dtype=torch.bool) for name in ("first.weight", "last.weight")
    }
    masks["first.weight"][1:] = False
    quiet(masks, lambda: network_of(net, example))
    masks["first.weight"][:] = False
    masks["last.weight"][1] = False
    with pytest.raises(ValueError, match=r"no path leads through first\.weight, last\.weight"):
        check_connected(masks, lambda: network_of(net, example))


def test_what_cannot_be_traced_is_a_warning_unless_the_masks_answer():
    net = Branches()
    masks = {"fc.weight": torch.tensor([[True, True], [False, False]])}
    quiet(masks, lambda: network_of(net, torch.rand(1, 2, dtype=torch.float64)))  # all inputs are full
    masks["fc.weight"][0, 0] = False
    with pytest.warns(UserWarning, match="could not be checked .* The forward of Branches cannot be traced"):
        check_connected(masks, lambda: network_of(net, torch.rand(1, 2, dtype=torch.float64)))


def test_a_module_that_cannot_be_copied_is_a_warning():
    net = chain()
    net.samples = (number for number in range(3))
    data = TrainingData(lambda module, batch: module(batch).sum(), [torch.rand(2, 3)])
    with pytest.warns(UserWarning, match="could not be checked .*: TypeError: cannot pickle 'generator' object"):
        sparsify(net, sparsity=0.7, data=data)
    assert list(masks_of(net)) == ["0.weight", "2.weight", "4.weight"]
