"""Verbs accept wrapped modules, and names are those of the module inside."""

import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning_fabric import Fabric as OtherFabric
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_signin import (
    MaskUpdates,
    SignInError,
    effective_weights,
    flip_signs_,
    load_sparse_state,
    masks,
    merge_,
    plain_view,
    rescale_,
    sparse_state,
    sparsify,
    transplant_,
)
from lightning_signin.core.wrappers import replica, unwrapped
from lightning_signin.export import load_compressed, save_compressed
from lightning_signin.metrics import SignFlips, flops, memory, sharpness


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


WRAPPERS = {
    "DistributedDataParallel": DistributedDataParallel,
    "DataParallel": DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "Fabric": lambda net: Fabric(accelerator="cpu", devices=1).setup(net),
    "lightning_fabric": lambda net: OtherFabric(accelerator="cpu", devices=1).setup(net),
    "Fabric and compiled": lambda net: Fabric(accelerator="cpu", devices=1).setup(torch.compile(net, backend="eager")),
    "DistributedDataParallel and compiled": lambda net: torch.compile(DistributedDataParallel(net), backend="eager"),
}
NAMES = ["module.weight", "head.weight"]


class Net(nn.Module):
    """With a layer that has the name of what wrappers call the module inside."""

    def __init__(self):
        super().__init__()
        self.module, self.head = nn.Linear(12, 20), nn.Linear(20, 4)

    def forward(self, x):
        return self.head(self.module(x).relu())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_verbs_see_the_module_inside(wrapper, process_group, tmp_path):
    net = sparsify(Net(), sparsity=0.8)
    expected = effective_weights(net)
    wrapped = WRAPPERS[wrapper](net)
    assert wrapped is not net
    assert unwrapped(wrapped) is net
    assert (replica(wrapped) is not None) == ("Distributed" in wrapper)
    assert list(masks(wrapped)) == list(effective_weights(wrapped)) == SignFlips(wrapped).names == NAMES
    with plain_view(wrapped):
        assert [n for n, p in net.named_parameters() if p.ndim == 2] == NAMES
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.01)
    updates = MaskUpdates(wrapped, "set", [optimizer], total_steps=300)
    state = sparse_state(wrapped, updates)
    copied = {name: [factor.clone() for factor in factors] for name, factors in state["factors"].items()}
    flip_signs_(wrapped, 1.0)
    assert all(torch.equal(theta, -expected[name]) for name, theta in effective_weights(net).items())
    load_sparse_state(wrapped, state | {"factors": copied}, updates)
    rescale_(wrapped, optimizers=[optimizer], momentum="carry")
    for name, theta in effective_weights(net).items():
        torch.testing.assert_close(theta, expected[name])
    save_compressed(wrapped, tmp_path / "wrapped")
    assert list(load_compressed(tmp_path / "wrapped")) == list(net.state_dict())
    assert [row.name for row in flops(wrapped, torch.zeros(1, 12)).layers] == NAMES
    assert memory(wrapped) == memory(net)
    x = torch.randn(9, 12)
    found = [float(sharpness(part, lambda net, x: net(x).square().mean(), [x])) for part in (wrapped, net)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert merge_(wrapped) is wrapped
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in Net().named_parameters()]


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if "Distributed" not in name])
def test_wrapped_module_is_made_sparse_by_the_names_inside(wrapper):
    net, plain = Net(), Net()
    wrapped = WRAPPERS[wrapper](net)
    transplant_(wrapped, names=NAMES, signs_from=plain.state_dict(), magnitudes_from=plain.state_dict())
    assert torch.equal(net.module.weight, plain.module.weight)
    assert sparsify(wrapped, sparsity=0.5, include=["module.*"], beta={"module.weight": 2.0}) is wrapped
    assert list(masks(net)) == ["module.weight"]
    assert wrapped(torch.zeros(3, 12)).shape == (3, 4)


def test_parameters_are_not_replaced_inside_distributed_data_parallel(process_group):
    for wrapper in ("DistributedDataParallel", "DistributedDataParallel and compiled"):
        net = Net()
        with pytest.raises(SignInError, match="Call `sparsify` before the module is wrapped"):
            sparsify(WRAPPERS[wrapper](net), sparsity=0.5)
        assert masks(net) == {}


def test_state_with_other_sizes_is_loaded_before_wrapping(process_group):
    few, net = sparsify(Net(), sparsity=0.9), sparsify(Net(), sparsity=0.8)
    with pytest.raises(SignInError, match="Load the state before wrapping the module"):
        load_sparse_state(DistributedDataParallel(net), sparse_state(few))
    load_sparse_state(net, sparse_state(few))
    assert sum(int(mask.sum()) for mask in masks(net).values()) == 32
