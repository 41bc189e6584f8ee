"""A script of `distributed/test_xla.py`, with torch_xla on its CPU runtime: the same runs on the CPU and on XLA."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch_xla
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import XLAAccelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_signin import merge_, plain_view, rescale_, sparsify
from lightning_signin.callback.start import storage_of
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import Cosine, RigL
from tests.small import BATCH, Small, callback, copies, data, seeded

FITS = {
    "static": {"frobenius_decay": 1e-3},
    "rigl": {"update": RigL(Cosine(4))},
    "scored": {"mask": "snip"},
    "tied": {},
}

STORAGES = ("auto", "compact", "dense")


class WithoutTPU(XLAAccelerator):
    """Lightning's accelerator looks for TPU chips; this one takes the device that torch_xla's CPU runtime has."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def parse_devices(devices: int) -> int:
        return devices

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device("xla", index) for index in range(devices)]


class Storages(Callback):
    """Notes where and how the weights are stored while they train."""

    def on_train_start(self, trainer, module):
        weights = sparse_weights(module).values()
        self.found = sorted({f"{weight.storage.name} on {weight.factors[0].device.type}" for weight in weights})


class Tied(Small):
    """Two layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(24, 24)
        self.still = nn.Linear(24, 24)
        self.still.weight = self.again.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.unsqueeze(1))).relu().flatten(1)
        return self.fc2(self.still(self.again(self.fc1(x)).tanh()))


def loop(device: torch.device) -> dict[str, Any]:
    """Plain torch: sparsify, train with rescales, merge."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 3)).to(device)
    x, y = (tensor.to(device) for tensor in data().tensors)
    sparsify(net, sparsity=0.9)
    with plain_view(net):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(20):
        if step % 5 == 4:
            rescale_(net, optimizers=[optimizer], momentum="carry")
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch_xla.sync()
    storages = sorted({weight.storage.name for weight in sparse_weights(net).values()})
    before = net(x).detach()
    merged = merge_(net)(x).detach()
    weights = {name: tensor.cpu() for name, tensor in copies(net).items()}
    return {"storages": storages, "weights": weights, "same": torch.equal(before.cpu(), merged.cpu())}


def fit(options: dict[str, Any], tied: bool, **place: Any) -> dict[str, Any]:
    """The callback on a Trainer."""
    module, storages = seeded(), Storages()
    if tied:
        module = Tied()
    module.dropout.p = 0.0
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    runner = Trainer(max_epochs=2, callbacks=[callback(**copy.deepcopy(options)), storages], **quiet, **place)
    runner.fit(module, DataLoader(data(), BATCH))
    # XLA's batch norm has another running variance than the CPU's, with or without this package.
    weights = {name: tensor.cpu() for name, tensor in copies(module).items() if "running_var" not in name}
    logged = {name: value.item() for name, value in runner.callback_metrics.items() if name.startswith("signin/")}
    return {"storages": storages.found, "weights": weights, "logged": logged}


def main(output: Path) -> None:
    torch.set_num_threads(1)
    device = torch_xla.device()  # before the first backward, which counts the devices
    found: dict[str, Any] = {"loop": [loop(torch.device("cpu")), loop(device)]}
    for name, options in FITS.items():
        places = {"accelerator": "cpu"}, {"accelerator": WithoutTPU(), "devices": 1}
        found[name] = [fit(options, name == "tied", **place) for place in places]
    trainer = Trainer(accelerator=WithoutTPU(), devices=1, logger=False)
    found["of a module on the CPU"] = {kind: storage_of(callback(storage=kind).arguments, trainer) for kind in STORAGES}
    torch.save(found, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
