"""What changes a module while a fit runs: quantization, other parametrizations, steps that fail, warning filters."""

import warnings

import pytest
import torch
import torch.ao.quantization as tq
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_signin import masks
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import SET
from tests.resuming import SaveEverywhere
from tests.small import BATCHES, Small, callback, loader, seeded, trainer

HOOKS = ["on_fit_start", "on_train_start", "on_train_epoch_start"]


class Quantized(Small):
    """A convolution and a linear layer that can be prepared for quantization, and the head, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1 = (tq.QuantWrapper(layer) for layer in (self.conv, self.fc1))


class Prepare(Callback):
    """Prepares quantization-aware training in a hook; in the second epoch, if there is one."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.prepare)
        self.from_epoch = 1 if hook == "on_train_epoch_start" else 0
        self.done, self.known, self.saved = False, {}, {}

    def prepare(self, trainer, module):
        if trainer.current_epoch < self.from_epoch or self.done:
            return
        self.done = True
        for layer in (module.conv, module.fc1):
            layer.qconfig = tq.get_default_qat_qconfig("fbgemm")
            tq.prepare_qat(layer.train(), inplace=True)

    def on_train_batch_end(self, trainer, module, *_):
        if self.done:
            self.known = masks(module)
            self.saved = {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("update", [None, SET(update_every_n_steps=4)], ids=["static", "moving"])
def test_quantization_that_is_prepared_in_a_fit(hook, update):
    torch.manual_seed(1)
    module, prepare = Quantized(), Prepare(hook)
    plain = [name for name, _ in module.named_parameters()]
    start = {name: tensor.clone() for name, tensor in module.named_parameters()}
    trainer(callback(update=update), prepare).fit(module, loader())
    assert [name for name, _ in module.named_parameters()] == plain
    assert sparse_weights(module) == {}
    assert set(prepare.known) == {"conv.module.weight", "fc1.module.weight", "fc2.weight"}
    ended = dict(module.named_parameters())
    for name, mask in prepare.known.items():
        assert not ended[name][~mask].any()
        assert not torch.equal(ended[name], start[name] * mask)
    assert set(plain) <= set(prepare.saved)
    assert not any("parametrizations" in name for name in prepare.saved)
    for layer in (module.conv, module.fc1):
        tq.convert(layer.eval(), inplace=True)
    assert module.eval()(torch.randn(2, 10)).shape == (2, 3)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
@pytest.mark.parametrize("hook", HOOKS)
def test_another_parametrization_in_a_fit_is_refused_and_the_module_merged(norm, hook):
    class Normalize(Callback):
        pass

    normalize = Normalize()
    setattr(normalize, hook, lambda trainer, module: norm(module.fc1))
    module = seeded()
    plain = [name for name, _ in module.named_parameters()]
    with pytest.raises(ValueError, match=r"takes no second parametrization|parametrized while it is sparse"):
        trainer(callback(), normalize).fit(module, loader())
    assert [name for name, _ in module.named_parameters()] == plain


class Fails(Small):
    """Raises in its third step, before or after the forward."""

    where = "after"
    steps = 0

    def training_step(self, batch, batch_idx):
        Fails.steps += 1
        if Fails.steps == 3 and self.where == "before":
            raise RuntimeError("A broken sample.")
        loss = super().training_step(batch, batch_idx)
        if Fails.steps == 3:
            raise RuntimeError("The loss was not to be had.")
        return loss


@pytest.mark.parametrize(
    ("where", "norm", "told"), [("after", True, True), ("after", False, False), ("before", True, False)]
)
def test_checkpoint_of_a_step_that_failed_resumes_exactly_or_says_why_not(where, norm, told, tmp_path, recwarn):
    def made():
        module = seeded()
        module.__class__, Fails.where = Fails, where
        if not norm:
            module.norm = nn.Identity()
        return module

    saves = {"enable_checkpointing": True}
    Fails.steps = 100
    whole = made()
    trainer(callback(), epochs=2).fit(whole, loader())
    Fails.steps = 0
    with pytest.raises(RuntimeError):
        trainer(callback(), OnExceptionCheckpoint(tmp_path, "failed"), epochs=2, **saves).fit(made(), loader())
    again = made()
    trainer(callback(), epochs=2).fit(again, loader(), ckpt_path=tmp_path / "failed.ckpt")
    said = [str(warning.message) for warning in recwarn if "not bit for bit" in str(warning.message)]
    assert bool(said) == told
    equal = all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))
    assert equal != told
    if told:
        assert "inside a training step that failed after it had changed buffers" in said[0]


def filters():
    """In any order: Lightning puts its own to the front in every fit."""
    return sorted(map(str, warnings.filters))


def test_exact_resume_leaves_the_warning_filters_as_they_were(tmp_path):
    trainer(callback(), SaveEverywhere(tmp_path), epochs=2).fit(seeded(), loader())
    before = filters()
    for checkpoint in ("step3.ckpt", f"step{BATCHES}.ckpt", "epoch0.ckpt"):
        trainer(callback(), epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / checkpoint)
        assert filters() == before, checkpoint


def test_filter_of_the_users_own_stays(tmp_path):
    trainer(callback(), SaveEverywhere(tmp_path), epochs=2).fit(seeded(), loader())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
        before = filters()
        trainer(callback(), epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "step3.ckpt")
        assert filters() == before
