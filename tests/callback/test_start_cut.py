"""Masks that cut the network are refused before training."""

import threading
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from lightning_signin.masks import Task
from tests.small import Small, callback, loader, seeded, trainer


def halves(task: Task | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What fc1 gives, fc2 does not read."""
    weights = task.weights if isinstance(task, Task) else task
    scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    scores["conv.weight"] += 1
    scores["fc1.weight"][:12] = scores["fc2.weight"][:, 12:] = 1
    return scores


@pytest.mark.parametrize("given", ["score", "file"])
def test_mask_that_cuts_the_network_is_refused_before_training(tmp_path, given):
    module = seeded()
    options = {"mask": halves, "distribution": "global", "sparsity": 0.5}
    if given == "file":
        selected = {name: module.get_parameter(name) for name in ("conv.weight", "fc1.weight", "fc2.weight")}
        torch.save({name: score > 0 for name, score in halves(selected).items()}, tmp_path / "mask.pt")
        options = {"mask_from": tmp_path / "mask.pt", "sparsity": None}
    with pytest.raises(ValueError, match=r"The mask cuts the network .* no path leads through .*fc1\.weight"):
        trainer(callback(**options)).fit(module, loader())
    assert module.losses == []
    assert type(module.fc1) is nn.Linear


def test_file_that_leaves_a_layer_empty_is_refused(tmp_path):
    kept = {name: weight * (name != "fc1.weight") for name, weight in seeded().state_dict().items()}
    kept["fc2.weight"][0, 0] = 0
    torch.save(kept, tmp_path / "empty.pt")
    with pytest.raises(ValueError, match=r"The mask of fc1\.weight in .*empty\.pt keeps nothing"):
        trainer(callback(mask_from=tmp_path / "empty.pt", sparsity=None)).fit(seeded(), loader())


class Uncopyable(Small):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_network_that_cannot_be_looked_at_is_a_warning():
    with pytest.warns(UserWarning, match="It could not be checked that the mask leaves a path from input to output"):
        trainer(callback(sparsity=0.98), epochs=1).fit(Uncopyable(), loader())
