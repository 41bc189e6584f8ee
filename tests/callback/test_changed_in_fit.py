"""What changes a module that is sparse: quantization, other parametrizations, failed steps; and warning filters."""

import warnings

import pytest
import torch
import torch.ao.quantization as tq
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from lightning_signin import effective_weights, masks, merge_, plain_view, sparsify
from tests.commands import filters
from tests.resuming import SaveEverywhere
from tests.small import BATCHES, Small, callback, loader, seeded, trainer

HOOKS = ["on_fit_start", "on_train_start", "on_train_epoch_start"]


def test_quantization_that_is_prepared_after_sparsify():
    net = nn.Sequential(tq.QuantStub(), nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4), tq.DeQuantStub())
    plain = list(net.state_dict())
    sparsify(net, sparsity=0.8)
    with plain_view(net):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.qconfig = tq.get_default_qat_qconfig("fbgemm")
    tq.prepare_qat(net.train(), inplace=True)
    known, start = masks(net), effective_weights(net)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(8, 20)).square().mean().backward()
        optimizer.step()
    assert merge_(net) is net
    assert [name for name, _ in net.named_parameters()] == plain
    for name, mask in known.items():
        ended = net.get_parameter(name)
        assert torch.equal(ended != 0, mask)
        assert not torch.equal(ended, start[name])
    assert not any("parametrizations" in name for name in net.state_dict())
    assert tq.convert(net.eval())(torch.randn(2, 20)).shape == (2, 4)


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
