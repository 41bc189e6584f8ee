"""Lightning's finetuning callbacks beside sparse weights: freeze, unfreeze at an epoch, resume."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import nn
from torch.optim import Optimizer

from lightning_signin import effective_weights
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import SET, Constant
from tests.resuming import SaveEverywhere
from tests.small import Small, callback, copies, differing, loader, seeded, trainer

EPOCHS = 4
RULE = SET(schedule=Constant(every_n_steps=5))


class Pretrained(Small):
    """A backbone before the layers of `Small`, and an optimizer of what is not frozen."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.backbone = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 10), nn.BatchNorm1d(10))

    def forward(self, x):
        return super().forward(self.backbone(x))

    def configure_optimizers(self) -> Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, 0.01, weight_decay=0.1)


class ByHand(Callback):
    """What `BackboneFinetuning` does, on the plain parameters of the backbone."""

    def setup(self, trainer, module, stage):
        frozen = [*module.backbone[0].parameters(), *module.backbone[2].parameters()]
        self.frozen = [parameter.requires_grad_(False) for parameter in frozen]

    def on_train_epoch_start(self, trainer, module):
        (optimizer,) = trainer.optimizers
        if trainer.current_epoch == 1:
            self.rate = 0.1 * optimizer.param_groups[0]["lr"]
            group = [parameter.requires_grad_(True) for parameter in self.frozen]
            optimizer.add_param_group({"params": group, "lr": self.rate})
        elif trainer.current_epoch > 1:
            self.rate *= 2
            optimizer.param_groups[-1]["lr"] = self.rate


class HeadLater(BaseFinetuning):
    """Freezes a sparse layer for epoch 1 only, and trains another one, in no optimizer at first, from epoch 2 on."""

    def freeze_before_training(self, module):
        pass

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 0:
            self.freeze(module.fc2)
        if epoch == 1:
            self.freeze(module.fc1)
        if epoch == 2:
            with pytest.warns(UserWarning, match="already exist within another group"):
                self.unfreeze_and_add_param_group(module.fc1, optimizer)
            self.unfreeze_and_add_param_group(module.fc2, optimizer, lr=0.05)


class Later(Small):
    """Leaves its last layer out of the optimizer."""

    def configure_optimizers(self) -> Optimizer:
        rest = [parameter for name, parameter in self.named_parameters() if not name.startswith("fc2")]
        return torch.optim.SGD(rest, 0.1, momentum=0.9)


class Overriding(BackboneFinetuning):
    """Overrides the hook, and compares the parameters of the optimizer with those of the module."""

    def on_train_epoch_start(self, trainer, module):
        super().on_train_epoch_start(trainer, module)
        named = {parameter: name for name, parameter in module.named_parameters()}
        self.groups = [[named[p] for p in group["params"]] for group in trainer.optimizers[0].param_groups]


class Effective(Callback):
    """Notes the sparse weights at the start of each epoch, and at the end of the last."""

    def __init__(self) -> None:
        self.found = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.found.append(effective_weights(module))

    def on_train_epoch_end(self, trainer, module):
        self.last = effective_weights(module)


class Doubled(BaseFinetuning):
    """Adds a sparse weight that the optimizer has already."""

    def freeze_before_training(self, module):
        pass

    def finetune_function(self, module, epoch, optimizer):
        optimizer.add_param_group({"params": [module.fc1.weight]})


def names_of(finetuning: BaseFinetuning) -> list[list[str]]:
    return [group["params"] for group in finetuning.state_dict()["internal_optimizer_metadata"][0]]


@pytest.mark.filterwarnings("ignore:.*frozen .requires_grad=False.")
@pytest.mark.parametrize("options", [{}, {"storage": "dense"}, {"update": RULE}], ids=["compact", "dense", "set"])
@pytest.mark.parametrize("kind", [BackboneFinetuning, Overriding])
def test_backbone_finetuning_is_what_one_does_by_hand(kind, options):
    ended = []
    for finetuning in (kind(1), ByHand()):
        module = seeded(kind=Pretrained)
        order = [finetuning, callback(**options)]
        trainer(*(order if kind is Overriding else order[::-1]), epochs=3).fit(module, loader())
        ended.append(copies(module))
        if isinstance(finetuning, BackboneFinetuning):
            backbone = ["backbone.0.weight", "backbone.0.bias", "backbone.2.weight", "backbone.2.bias"]
            rest = [name for name, _ in module.named_parameters() if name not in backbone]
            assert names_of(finetuning) == [rest, backbone]
        if isinstance(finetuning, Overriding):
            assert finetuning.groups == [rest, backbone]
    assert differing(*ended) == []


@pytest.mark.filterwarnings("ignore:.*frozen .requires_grad=False.")
def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path):
    whole = seeded(kind=Pretrained)
    trainer(BackboneFinetuning(1), callback(), SaveEverywhere(tmp_path), epochs=3).fit(whole, loader())
    for checkpoint in ("step5", "epoch0", "step15", "epoch1"):  # before, at, and after unfreezing
        resumed = seeded(kind=Pretrained)
        for parameter in resumed.parameters():
            nn.init.ones_(parameter)
        again = BackboneFinetuning(1)
        trainer(again, callback(), epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / f"{checkpoint}.ckpt")
        assert differing(copies(whole), copies(resumed)) == [], checkpoint
        assert len(names_of(again)) == 2


@pytest.mark.filterwarnings("ignore:.*in no optimizer")
@pytest.mark.parametrize("options", [{}, {"storage": "dense"}, {"parametrization": "plain"}], ids=str)
def test_sparse_weights_are_frozen_and_unfrozen(options):
    noted, finetuning = Effective(), HeadLater()
    running = trainer(finetuning, callback(rescale_every_n_epochs=None, **options), noted, epochs=EPOCHS)
    module = seeded(kind=Later)
    running.fit(module, loader())
    moved = [
        {name for name in before if not torch.equal(before[name], after[name])}
        for before, after in zip(noted.found, [*noted.found[1:], noted.last], strict=True)
    ]
    early, late = {"conv.weight", "fc1.weight"}, {"conv.weight", "fc1.weight", "fc2.weight"}
    assert moved == [early, {"conv.weight"}, late, late]
    first = [name for name, _ in module.named_parameters() if not name.startswith("fc2")]
    assert names_of(finetuning) == [first, ["fc2.weight", "fc2.bias"]]
    assert [group["lr"] for group in running.optimizers[0].param_groups] == [0.1, 0.05]


def test_torch_refuses_a_weight_in_two_groups():
    module = seeded()
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        trainer(Doubled(), callback()).fit(module, loader())
    assert not sparse_weights(module)
