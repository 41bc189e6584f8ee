"""Networks of transformers × masks: each is trained by a real Trainer, or refused in one line that names the layer."""

import math
import re
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_signin import masks
from lightning_signin.masks.distributions import budget
from tests.compat.hugging_rows import MASKS, MODELS, Model
from tests.compat.test_rows import OURS
from tests.small import callback, copies, differing, trainer


class Task(LightningModule):
    """What the documentation of transformers shows: the network is called with its targets and gives the loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.losses = net, []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.net(**batch).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 0.01, weight_decay=0.0)  # what has no gradient stays where it is


class Start(Callback):
    """Notes the masks and the weights that a fit starts with."""

    def on_train_start(self, trainer: Any, module: nn.Module) -> None:
        self.masks, self.weights = masks(module), copies(module)


def fitted(model: Model, mask: object) -> tuple[Task, Start, set[str]]:
    task, start = Task(model.make()), Start()
    batches = DataLoader([model.batch() for _ in range(2)], batch_size=None)
    options = {"sparsity": 0.8, "distribution": "balanced", "rescale_every_n_epochs": None, **model.sign_in}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callback(mask=mask, **options), start, epochs=1).fit(task, batches)
    return task, start, {str(warning.message) for warning in caught if OURS.search(str(warning.message))}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_transformers(name, mask):
    model = MODELS[name]
    if (refusal := model.refused.get(mask)) is not None:
        with pytest.raises(ValueError, match=re.escape(refusal)) as refused:
            fitted(model, MASKS[mask])
        assert "\n" not in str(refused.value)
        return
    task, start, said = fitted(model, MASKS[mask])
    assert len(task.losses) == 2
    assert all(math.isfinite(loss) for loss in task.losses)
    assert [text for text in said if not any(says in text for says in model.says)] == []

    ends = copies(task)
    for weight, kept in start.masks.items():
        assert not ends[weight][~kept].any()
        assert not torch.equal(ends[weight], start.weights[weight]), weight
    kept, size = (sum(int(of(mask)) for mask in start.masks.values()) for of in (torch.sum, torch.numel))
    assert kept == budget(model.sign_in.get("sparsity", 0.8), size)

    plain = model.make()
    plain.load_state_dict(task.net.state_dict(), strict=True)
    assert differing(copies(plain), copies(task.net)) == []
