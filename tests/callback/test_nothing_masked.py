"""With nothing masked and plain weights, fits are those without the callback, whatever trains what."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning
from lightning.pytorch.loops.optimization.automatic import Closure
from torch.optim import Optimizer

from lightning_signin import SignInCallback
from tests.small import Small, callback, copies, differing, loader, seeded, trainer


def unmasked() -> SignInCallback:
    return SignInCallback(sparsity=0.0, parametrization="plain")


def fitted(kind: type[Small], *callbacks: object) -> dict[str, torch.Tensor]:
    """The state after a fit."""
    module = seeded(kind=kind)
    trainer(*callbacks, epochs=2).fit(module, loader())
    return copies(module)


class HeadOnly(Small):
    """Trains its last layer only, without freezing the rest."""

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.fc2.parameters(), 0.1)


class Untrained(Small):
    """Has no optimizer."""

    def configure_optimizers(self) -> None:
        return None


class Averaged(Small):
    """Trains with an optimizer that averages its parameters."""

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.ASGD(self.parameters(), 0.1, t0=2)


class Quasi(Small):
    """Trains with an optimizer that calls its closure several times, and holds all parameters as one."""

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


class Mixing(Small):
    """Trains matrices with an optimizer that mixes their entries."""

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.Muon([self.fc1.weight, self.fc2.weight], 0.1)


class Thawing(BaseFinetuning):
    """Freezes all layers, and lets one of them train from each epoch on."""

    def freeze_before_training(self, module: LightningModule) -> None:
        self.freeze(module, train_bn=False)

    def finetune_function(self, module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        self.unfreeze_and_add_param_group([module.fc1, module.fc2][epoch], optimizer)


class Conv(Small):
    """Begins with an optimizer of its first layer."""

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.conv.parameters(), 0.1)


def pruning() -> ModelPruning:
    return ModelPruning("l1_unstructured", amount=0.3, make_pruning_permanent=True)


KINDS = [HeadOnly, Untrained, Averaged, Quasi, *([Mixing] if hasattr(torch.optim, "Muon") else [])]


@pytest.mark.filterwarnings("ignore:.*in no optimizer", "ignore:.*configure_optimizers.*returned `None`")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_the_one_without_the_callback(kind):
    assert differing(fitted(kind, unmasked()), fitted(kind)) == []


def test_a_sparse_weight_in_no_optimizer_is_named_and_does_not_train():
    with pytest.warns(UserWarning, match="in no optimizer") as caught:
        after = fitted(HeadOnly, callback())
    text = next(str(warning.message) for warning in caught if "in no optimizer" in str(warning.message))
    assert text.startswith("conv.bias, conv.weight, norm.weight, norm.bias, fc1.bias and 1 more have"), text
    start = copies(seeded())
    kept = after["fc1.weight"] != 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(after["fc1.weight"][kept], start["fc1.weight"][kept], rtol=1e-5, atol=1e-7)


class Stepping(Small):
    """Calls the closure itself, as Lightning's own closures are called."""

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None, **_: Any
    ) -> None:
        assert isinstance(optimizer_closure, Closure)
        assert optimizer_closure().ndim == 0
        if batch_idx % 2:
            optimizer.step()


@pytest.mark.parametrize("with_callback", [unmasked, callback])
def test_optimizer_step_gets_a_closure_of_lightning(with_callback):
    module = seeded(kind=Stepping)
    trainer(with_callback(), epochs=1).fit(module, loader())
    assert len(module.losses) == 10


def test_what_optimizer_step_trains_is_what_it_trains_without_the_callback():
    assert differing(fitted(Stepping, unmasked()), fitted(Stepping)) == []


class Kinds(Callback):
    """Notes the names of the layers' classes during a fit."""

    def on_train_batch_start(self, trainer: object, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self.found = [type(layer).__name__ for layer in pl_module.children()]


@pytest.mark.parametrize("with_callback", [unmasked, callback])
def test_layers_have_the_names_of_their_classes(with_callback):
    kinds = Kinds()
    fitted(Small, kinds, with_callback())
    assert kinds.found == ["Conv1d", "BatchNorm1d", "Dropout", "Linear", "Linear"]


class Asking(Small):
    """Asks its parameters if they train, where no graph is made."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.asked = [self.fc1.weight.requires_grad, self.conv.weight.requires_grad, self.fc1.bias.requires_grad]

    def on_fit_start(self) -> None:
        self.conv.requires_grad_(False)


@pytest.mark.parametrize("with_callback", [unmasked, callback])
def test_weights_train_in_validation_steps_too(with_callback):
    module = seeded(kind=Asking)
    trainer(with_callback(), epochs=1).fit(module, loader(), loader())
    assert module.asked == [True, False, True]


@pytest.mark.parametrize(("make", "kind"), [(pruning, Small), (Thawing, Conv)])
def test_callbacks_that_replace_or_freeze_all_weights_do_as_without(make, kind):
    def groups(done: Any) -> Any:
        return done.state_dict() if isinstance(done, BaseFinetuning) else None

    alone, beside = make(), make()
    assert differing(fitted(kind, alone), fitted(kind, beside, unmasked())) == []
    assert groups(alone) == groups(beside)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_a_dense_checkpoint_is_resumed_as_without(optimizer, tmp_path):
    path, ended = tmp_path / "dense.ckpt", []
    runner = trainer(epochs=2)
    runner.fit(seeded(optimizer), loader())
    runner.save_checkpoint(path)
    for own in ([], [unmasked()]):
        module = seeded(optimizer)
        trainer(*own, epochs=3).fit(module, loader(), ckpt_path=path)
        ended.append(copies(module))
    assert differing(*ended) == []


def test_a_dense_checkpoint_is_refused_where_something_is_masked(tmp_path):
    runner = trainer(epochs=1)
    runner.fit(seeded(), loader())
    runner.save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(ValueError, match="was not written by a run with SignInCallback"):
        trainer(callback(sparsity=0.0), epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "dense.ckpt")
