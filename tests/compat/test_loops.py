"""Loops without a Trainer: Fabric, bare PyTorch, sharded optimizers, and every optimizer of timm."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from lightning.fabric import Fabric
from lightning_fabric import Fabric as OtherFabric
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F

from lightning_signin import masks, merge_, plain_view, rescale_, sparsify
from tests.compat.optimizer_rows import KEEP, task
from tests.compat.rows import Row, Watch, check_equal, check_plain, check_trained, dense, run, sparse
from tests.compat.task import Net, sgd, train_loader
from tests.small import copies, differing

Make = Callable[[nn.Module], torch.optim.Optimizer]


def bare(net: nn.Module, make: Make = sgd, momentum: str = "keep") -> list[float]:
    """One epoch with a rescale in its middle."""
    with plain_view(net):
        optimizer = make(net)
    torch.manual_seed(2)
    losses = []
    for index, (x, y) in enumerate(train_loader()):
        if index == 3:
            rescale_(net, optimizers=[optimizer], momentum=momentum)
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        losses.append(loss.item())
        loss.backward(create_graph=type(optimizer).__name__ == "Adahessian")
        optimizer.step()
    return losses


def in_fabric(fabric: Any) -> Callable[[nn.Module], list[float]]:
    def loop(net: nn.Module) -> list[float]:
        with plain_view(net):
            optimizer = sgd(net)
        wrapped, stepped = fabric.setup(net, optimizer)
        loader, losses = fabric.setup_dataloaders(train_loader()), []
        torch.manual_seed(2)
        for index, (x, y) in enumerate(loader):
            if index == 3:
                rescale_(net, optimizers=[optimizer], momentum="carry")
            stepped.zero_grad()
            loss = F.cross_entropy(wrapped(x), y)
            losses.append(loss.item())
            fabric.backward(loss)
            fabric.clip_gradients(wrapped, stepped, max_norm=0.5)
            stepped.step()
        return losses

    return loop


LOOPS: dict[str, Callable[[nn.Module], list[float]]] = {
    "bare": bare,
    "bare with carried momentum": lambda net: bare(net, momentum="carry"),
    "Fabric": in_fabric(Fabric(accelerator="cpu")),
    "Fabric bf16-mixed": in_fabric(Fabric(accelerator="cpu", precision="bf16-mixed")),
    "Fabric bf16-true": in_fabric(Fabric(accelerator="cpu", precision="bf16-true")),
    "Fabric 64-true": in_fabric(Fabric(accelerator="cpu", precision="64-true")),
    "lightning_fabric": in_fabric(OtherFabric(accelerator="cpu")),
}


def check(loop: Callable[[nn.Module], list[float]], **options: Any) -> None:
    torch.manual_seed(1)
    plain, dense, net, names = Net(), Net(), Net(), [name for name, _ in Net().named_parameters()]
    dense.load_state_dict(plain.state_dict())
    sparsify(dense, sparsity=0.0, parametrization="plain", **options)
    assert loop(dense) == loop(plain)
    assert differing(copies(merge_(dense)), copies(plain)) == []
    kept = masks(sparsify(net, sparsity=0.8, **options))
    assert all(math.isfinite(loss) for loss in loop(net))
    state = copies(net)
    Net().load_state_dict(state, strict=True)
    assert differing(copies(merge_(net)), state) == []
    assert [name for name, _ in net.named_parameters()] == names
    for name, mask in kept.items():
        assert not state[name][~mask].any(), name
        assert torch.isfinite(state[name]).all(), name


@pytest.mark.parametrize("loop", LOOPS)
def test_loop_trains_a_sparse_network_and_leaves_a_dense_one_alone(loop):
    check(LOOPS[loop])


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_sharded_optimizer_trains_the_factors(process_group, inner):
    check(lambda net: bare(net, lambda net: ZeroRedundancyOptimizer(net.parameters(), inner, lr=0.01)))


def test_sharded_optimizer_in_a_trainer_is_like_any_other(process_group, tmp_path):
    row = Row("sharded", task(ZeroRedundancyOptimizer, optimizer_class=torch.optim.Adagrad, lr=0.01), sign_in=KEEP)
    check_equal(run(row, tmp_path / "with", dense(row)), run(row, tmp_path / "without"))
    watch = Watch(tmp_path)
    done = run(row, tmp_path, sparse(row), watch)
    check_plain(row, done, watch)
    check_trained(done, watch)


NOT_INSTALLED = ("bnb", "fused")  # names of optimizers that need bitsandbytes or apex
MIXING = ("kron", "muon", "adamuon", "nadamuon", "nmuon", "kronc", "kronw")
SHAPED = ("adafactor", "adamp", "sgdp", "mars", "cadafactor", "cadamp", "csgdp", "cmars")
NAMES = [name for name in timm.optim.list_optimizers() if not name.startswith(NOT_INSTALLED)]


def of_timm(name: str) -> Make:
    def make(net: nn.Module) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.optim.create_optimizer_v2(net, name, lr=1e-3, weight_decay=1e-3)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_of_timm_trains_a_sparse_network_or_is_refused(name):
    if name in MIXING:
        with pytest.raises(
            ValueError, match=r"mixes the entries of a weight, which would fill the zeros of \w+\.weight"
        ):
            check(lambda net: bare(net, of_timm(name)), storage="compact")
        return
    if name.startswith("madgrad"):  # its steps start from copies of the parameters
        with pytest.raises(ValueError, match="MADGRAD cannot follow a rescale of m and w"):
            check(lambda net: bare(net, of_timm(name)), storage="compact")
        return
    if name.startswith(SHAPED):
        with pytest.raises(ValueError, match="Pass storage='dense', or use an elementwise optimizer"):
            check(lambda net: bare(net, of_timm(name)), storage="compact")
        check(lambda net: bare(net, of_timm(name)), storage="dense")
        return
    for storage in ("compact", "dense"):
        check(lambda net: bare(net, of_timm(name)), storage=storage)
