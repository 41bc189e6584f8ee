"""A tied sparse weight is one tensor in state dicts and files, as in the plain network."""

import copy
import io

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_signin import merge_, sparsify
from lightning_signin.export import export
from lightning_signin.weightfiles.saved import read_weights
from tests.core.test_func import STORAGES


def three_layers() -> nn.Module:
    """The first and last share their weight."""
    net = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 128))
    net[2].weight = net[0].weight
    return net


def size(state: dict[str, Tensor]) -> int:
    torch.save(state, file := io.BytesIO())
    return file.tell()


def groups(state: dict[str, Tensor]) -> list[set[str]]:
    """The names that share memory."""
    found: dict[int, set[str]] = {}
    for name, value in state.items():
        found.setdefault(value.untyped_storage().data_ptr(), set()).add(name)
    return [names for names in found.values() if len(names) > 1]


@STORAGES
def test_a_state_dict_holds_a_tied_weight_once(storage):
    net = three_layers()
    plain = size(net.state_dict())
    sparsify(net, sparsity=0.5, storage=storage)
    state = net.state_dict()
    assert groups(state) == [{"0.weight", "2.weight"}]
    assert size(state) == pytest.approx(plain, abs=200)
    assert groups(net.state_dict(keep_vars=True)) == [{"0.weight", "2.weight"}]
    assert groups(nn.ModuleDict({"a": net, "b": nn.Linear(2, 2)}).state_dict()) == [{"a.0.weight", "a.2.weight"}]
    assert not groups(net[1:].state_dict())
    assert groups(copy.deepcopy(net).state_dict()) == [{"0.weight", "2.weight"}]
    merge_(net)
    assert len(list(net.parameters())) == 5
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_state_dict_is_of_now_even_if_it_is_written_over_an_old_one():
    net = sparsify(three_layers(), sparsity=0.5)
    state = net.state_dict()
    with torch.no_grad():
        net[0].parametrizations.weight.original0.mul_(2)
    again = net.state_dict(destination=copy.copy(state))
    assert not torch.equal(again["0.weight"], state["0.weight"])
    assert all(torch.equal(again[name], net[int(name[0])].weight) for name in ("0.weight", "1.weight", "2.weight"))


def test_equal_weights_that_are_not_tied_stay_apart():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    net[1].load_state_dict(net[0].state_dict())
    mask = torch.rand(8, 8) < 0.5
    sparsify(net, mask={"0.weight": mask, "1.weight": mask})
    assert torch.equal(net[0].weight, net[1].weight)
    assert not groups(net.state_dict())


@pytest.mark.parametrize("sparse", [True, False])
def test_exports_hold_a_tied_weight_as_those_of_the_plain_network_do(tmp_path, sparse):
    net = three_layers()
    export(merge_(sparsify(copy.deepcopy(net), sparsity=0.5)), tmp_path / "plain.ckpt", "ckpt")
    if sparse:
        sparsify(net, sparsity=0.5)
    for to in ("ckpt", "safetensors"):
        export(net, tmp_path / f"net.{to}", to)
        saved = read_weights(tmp_path / f"net.{to}").tensors
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in saved.items())
    size, plain = ((tmp_path / name).stat().st_size for name in ("net.ckpt", "plain.ckpt"))
    assert size == pytest.approx(plain, abs=200)
    # Safetensors have no shared entries: each name has its own, so that every program loads the file strictly.
    three_layers().load_state_dict(load_file(tmp_path / "net.safetensors"))
