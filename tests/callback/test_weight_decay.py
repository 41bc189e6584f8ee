"""The optimizer's weight decay in a fit: on θ by default, on m and w if asked for."""

import inspect

import pytest
import torch
from lightning.pytorch import Callback

from lightning_signin import effective_weights
from lightning_signin.core.functional import factorize
from lightning_signin.parametrizations import Spred
from tests.compat.optimizer_rows import OF_TORCH
from tests.small import Small, callback, copies, differing, loader, seeded, trainer
from tests.strangers import Lasso


def fit(module, *callbacks, ckpt_path=None, epochs=2, **options):
    runner = trainer(*callbacks, epochs=epochs, **options)
    runner.fit(module, loader(), ckpt_path=ckpt_path)
    return runner


class Weights(Small):
    """Decays the sparse weights alone, so that the decay of the optimizer and of the callback are the same."""

    decay = 0.0

    def configure_optimizers(self):
        weights = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        return getattr(torch.optim, self.optimizer)(
            [{"params": weights, "weight_decay": self.decay}, {"params": rest, "weight_decay": 0.0}], **self.options
        )


@pytest.mark.parametrize("extra", [{}, {"accumulate_grad_batches": 3}], ids=str)
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_coupled_decay_is_the_frobenius_decay(optimizer, extra):
    ends = []
    for decay, frobenius in ((0.1, 0.0), (0.0, 0.1)):
        torch.manual_seed(1)
        module = Weights(optimizer, lr=0.02)
        module.decay = decay
        fit(module, callback(frobenius_decay=frobenius), **extra)
        ends.append(copies(module))
    for name, weight in ends[0].items():
        if name in ("conv.bias", "norm.running_mean"):  # before BatchNorm its gradient is rounding, which Adam enlarges
            continue
        torch.testing.assert_close(weight, ends[1][name], rtol=1e-3, atol=1e-4)


class AfterOneStep(Callback):
    def on_train_batch_start(self, trainer, module, *_):
        self.before = getattr(self, "before", None) or effective_weights(module)

    def on_train_batch_end(self, trainer, module, *_):
        self.after = effective_weights(module)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_clipping_does_not_clip_the_decay(optimizer):
    """With gradients clipped to nothing one step is the decay alone: that of SGD goes through the factors."""
    rate, decay, noted = 0.1, 0.5, AfterOneStep()
    module = seeded(optimizer, lr=rate, weight_decay=decay, **({"eps": 1.0} if optimizer == "AdamW" else {}))
    fit(module, callback(rescale_every_n_epochs=None), noted, max_steps=1, gradient_clip_val=1e-9)
    for name, theta in noted.before.items():
        m, w = factorize(theta, 1.0)
        of_sgd = (m - rate * decay * theta * w) * (w - rate * decay * theta * m)
        expected = of_sgd if optimizer == "SGD" else (1 - rate * decay) * theta
        torch.testing.assert_close(noted.after[name], expected, rtol=1e-4, atol=1e-6)


def test_methods_are_comparable():
    """AdamW with the same decay shrinks plain weights and products alike; decay on the factors shrinks θ further."""
    shrunk = {}
    for name, options in {
        "plain": {"parametrization": "plain"},
        "sign-in": {},
        "factors": {"weight_decay": "factors"},
    }.items():
        norms = []
        for decay in (0.0, 2.0):
            module = seeded("AdamW", lr=0.01, weight_decay=decay)
            fit(module, callback(**options), epochs=3)
            norms.append(module.fc1.weight.norm().item())
        shrunk[name] = norms[1] / norms[0]
    assert shrunk["sign-in"] == pytest.approx(shrunk["plain"], rel=0.1)
    assert shrunk["factors"] < 0.85 * shrunk["plain"]


class SaveAfter(Callback):
    def __init__(self, steps, path) -> None:
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("steps", [4, 6])  # of 4 an epoch
@pytest.mark.parametrize("name", OF_TORCH)
def test_resume_equals_uninterrupted(name, steps, tmp_path):
    """Of every optimizer of torch, at the end of an epoch and within one, with a rescale to come."""
    options, arguments = OF_TORCH[name]
    if "weight_decay" in inspect.signature(getattr(torch.optim, name)).parameters:
        options = {"lr": 0.02, **options, "weight_decay": 0.3}
    path = tmp_path / "saved.ckpt"
    whole = seeded(name, **options)
    fit(whole, callback(**arguments), SaveAfter(steps, path), limit_train_batches=4)
    torch.manual_seed(99)
    again = Small(name, **options)
    fit(again, callback(**arguments), ckpt_path=path, limit_train_batches=4)
    assert differing(copies(whole), copies(again)) == []
    assert all(value.isfinite().all() for value in copies(again).values())


def test_optimizer_is_as_it_was_after_the_fit():
    module = seeded("AdamW", lr=0.01, weight_decay=0.1)
    sign_in = callback()
    runner = fit(module, sign_in)
    (optimizer,) = runner.optimizers
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    assert sign_in.state_dict()["weight_decay"] == "0.1 on θ"
    assert not [hook for hook in optimizer._optimizer_step_pre_hooks.values() if "ThetaDecay" in repr(hook)]


def test_two_decays_are_told():
    sign_in = callback(frobenius_decay=1e-3, weight_decay="factors")
    with pytest.warns(
        UserWarning, match=r"decay twice: by `frobenius_decay`=0.001 and by the optimizer's `weight_decay"
    ):
        fit(seeded("AdamW"), sign_in, max_steps=1)
    assert sign_in.state_dict()["weight_decay"] == "0.01 on m and w and 0.001 on θ (frobenius_decay)"


class Lassoed(Small):
    def configure_optimizers(self):
        return Lasso(self.parameters(), lr=0.01, weight_decay=0.1)


WORDS = {
    "0.1 on θ": (lambda: seeded("SGD", lr=0.01, weight_decay=0.1), {}),
    "0.1 on m and w": (lambda: seeded("SGD", lr=0.01, weight_decay=0.1), {"weight_decay": "factors"}),
    "0.1 on m and w (of Lasso)": (lambda: seeded(kind=Lassoed), {}),
    "0.01 on θ and 0.2 on m and w (decay_strength)": (
        lambda: seeded("AdamW"),
        {"parametrization": Spred(decay_strength=0.2)},
    ),
    "0.3 on θ (frobenius_decay)": (lambda: seeded("SGD"), {"frobenius_decay": 0.3}),
    "none": (lambda: seeded("SGD"), {"parametrization": "plain"}),
}


@pytest.mark.filterwarnings("ignore:The `weight_decay` of Lasso acts on m and w")
@pytest.mark.parametrize("words", WORDS)
def test_decays_in_words(words):
    make, arguments = WORDS[words]
    sign_in = callback(**{"rescale_every_n_epochs": None, **arguments})
    fit(make(), sign_in, max_steps=1)
    assert sign_in.state_dict()["weight_decay"] == words.removesuffix(" (of Lasso)")


class Reads(Callback):
    """Reads gradients where they are still there after a step."""

    def on_train_batch_end(self, trainer, module, *_):
        self.found = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.zeroed = [
            p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_hooks_after_a_step_read_the_gradients_of_the_loss(optimizer):
    found = []
    for decay in (0.0, 0.5):
        reads = Reads()
        fit(seeded(optimizer, lr=1e-9, weight_decay=decay), callback(rescale_every_n_epochs=None), reads, max_steps=2)
        found.append([*reads.found.values(), *reads.zeroed])
        assert len(reads.zeroed) == 11  # the factors of three weights, and the other parameters
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_decays_must_be_known():
    with pytest.raises(ValueError, match="`weight_decay` must be one of 'theta', 'factors'; got 'm'"):
        callback(weight_decay="m")
