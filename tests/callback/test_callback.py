"""What the callback's arguments do to a run."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import nn

from lightning_signin import effective_weights, masks
from lightning_signin.core.functional import scaling
from lightning_signin.core.weights import sparse_weights
from tests.small import BATCHES, Small, callback, copies, differing, loader, seeded, trainer


class Watch(Callback):
    """Notes the mean scaling before the first and after the last batch of every epoch."""

    def __init__(self) -> None:
        self.before, self.after = [], []

    def mean(self, module: nn.Module) -> float:
        values = [scaling(*weight.factors).flatten() for weight in sparse_weights(module).values()]
        kept = torch.cat(values)
        return float(kept[kept != 0].mean())

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.before.append(self.mean(module))

    def on_train_epoch_end(self, trainer, module):
        self.after.append(self.mean(module))


def fit(module: Small, *callbacks: Callback, epochs: int = 4, **options: object):
    seed_everything(2, verbose=False)  # batches and dropout, the same for every run of a test
    runner = trainer(*callbacks, epochs=epochs, **options)
    runner.fit(module, loader())
    return runner


@pytest.mark.parametrize(
    ("options", "rescaled"),
    [
        ({"rescale_every_n_epochs": 2, "rescale_until": 1.0}, {2, 4}),
        ({"rescale_every_n_epochs": 1, "rescale_until": 3}, {1, 2}),
        ({"rescale_every_n_epochs": 1, "rescale_until": 0.5}, {1, 2}),
        ({"rescale_every_n_epochs": None, "rescale_every_n_steps": 3 * BATCHES, "rescale_until": 1.0}, {3}),
        ({"rescale_every_n_epochs": None}, set()),
    ],
    ids=str,
)
def test_rescales_happen_at_every_p_th_epoch_before_t2(options, rescaled):
    watch = Watch()
    fit(seeded(), callback(beta=2.0, frobenius_decay=0.1, **options), watch, epochs=5)
    at_beta = {epoch for epoch, value in enumerate(watch.before) if epoch and abs(value - 2) < 1e-5}
    assert at_beta == rescaled


@pytest.mark.parametrize(
    ("options", "run", "warned"),
    [
        ({"rescale_every_n_epochs": 2, "rescale_until": 0.5}, {"epochs": 4}, True),
        ({"rescale_every_n_epochs": 2, "rescale_until": 0.75}, {"epochs": 4}, False),
        ({"rescale_every_n_epochs": None, "rescale_every_n_steps": 2 * BATCHES}, {"epochs": 4}, False),
        ({"rescale_every_n_epochs": None, "rescale_every_n_steps": 2 * BATCHES}, {"accumulate_grad_batches": 2}, True),
        ({"rescale_every_n_epochs": 9, "parametrization": "plain"}, {"epochs": 1}, False),
        ({"rescale_every_n_epochs": 9}, {"fast_dev_run": True}, False),
    ],
    ids=str,
)
def test_run_that_ends_before_its_first_rescale_is_told(options, run, warned, recwarn):
    fit(seeded(), callback(**options), **run)
    assert any("trains m ⊙ w without Sign-In" in str(found.message) for found in recwarn) == warned


def test_fraction_counts_steps_where_the_run_does():
    watch = Watch()
    sign_in = callback(rescale_every_n_epochs=1, rescale_until=0.5, beta=2.0, frobenius_decay=0.1)
    fit(seeded(), sign_in, watch, epochs=-1, max_steps=4 * BATCHES)
    assert [abs(value - 2) < 1e-5 for value in watch.before] == [True, True, False, False]


def test_logged_values_are_those_of_the_model():
    class Start(Callback):
        def on_train_start(self, trainer, module):
            self.weights, self.masks = effective_weights(module), masks(module)

        def on_train_end(self, trainer, module):
            kept = torch.cat([weight[self.masks[name]] for name, weight in effective_weights(module).items()])
            start = torch.cat([weight[self.masks[name]] for name, weight in self.weights.items()])
            self.flips = float((kept.sign() * start.sign() < 0).float().mean())

    start, watch = Start(), Watch()
    runner = fit(seeded(), callback(), start, watch)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert logged["signin/sparsity"] == pytest.approx(1 - round(0.3 * 1242) / 1242)
    assert logged["signin/sign_flips"] == pytest.approx(start.flips, abs=1e-6)
    assert 0 < start.flips < 1
    assert logged["signin/scaling"] == pytest.approx(watch.after[-1], abs=1e-5)


def test_plain_masked_run_has_no_scaling():
    runner = fit(seeded(), callback(parametrization="plain"), epochs=1)
    assert set(runner.callback_metrics) == {"signin/sparsity", "signin/model_sparsity", "signin/sign_flips"}


@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_plain_masked_run_equals_masking_by_hand(storage):
    module = seeded()
    fit(module, callback(parametrization="plain", storage=storage, exclude=["conv.weight"]))
    hand = seeded()
    kept = {name: module.state_dict()[name] != 0 for name in ("fc1.weight", "fc2.weight")}

    class Hand(Callback):
        def on_train_batch_start(self, trainer, by_hand, *_):
            self.mask(by_hand)

        def on_before_optimizer_step(self, trainer, by_hand, optimizer):
            for name, mask in kept.items():
                by_hand.get_parameter(name).grad *= mask

        def mask(self, by_hand):
            with torch.no_grad():
                for name, mask in kept.items():
                    by_hand.get_parameter(name).mul_(mask)

    fit(hand, Hand())
    for name, weight in copies(module).items():
        assert torch.allclose(weight.float(), hand.state_dict()[name].float(), atol=1e-6), name


def test_dense_plain_run_equals_the_run_without_the_callback():
    module, without = seeded(), seeded()
    fit(module, callback(sparsity=0.0, parametrization="plain"))
    fit(without)
    assert differing(copies(module), copies(without)) == []


def test_frobenius_decay_of_a_plain_masked_weight_is_weight_decay():
    module, other = seeded(lr=0.1, momentum=0.9), seeded(lr=0.1, momentum=0.9)
    only = {"include": ["fc1.weight"], "parametrization": "plain", "sparsity": 0.0}

    def with_groups():
        rest = [parameter for name, parameter in other.named_parameters() if name != "fc1.weight"]
        decayed = {"params": [other.fc1.weight], "weight_decay": 0.03}
        return torch.optim.SGD([decayed, {"params": rest}], lr=0.1, momentum=0.9)

    other.configure_optimizers = with_groups
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    fit(module, callback(frobenius_decay=0.03, **only))
    fit(other, callback(**only))
    for name, weight in copies(module).items():
        assert torch.allclose(weight, other.state_dict()[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("extra", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 1e-3}], ids=str)
def test_frobenius_decay_is_added_once_a_step_and_before_clipping(extra):
    """With λ so large that it is all of the gradient, the step is known."""

    class Gradient(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            m, w = sparse_weights(module)["fc1.weight"].factors
            self.last, self.expected = m.grad.clone(), (1e6 * m * w * w).detach()
            self.norm = torch.cat([p.grad.flatten() for p in trainer.optimizers[0].param_groups[0]["params"]]).norm()

    gradient = Gradient()
    fit(seeded(lr=0.0), callback(frobenius_decay=1e6), gradient, epochs=1, **extra)
    if "gradient_clip_val" in extra:
        assert float(gradient.norm) == pytest.approx(1e-3, rel=1e-3)
    else:
        assert torch.allclose(gradient.last, gradient.expected, rtol=1e-3, atol=1.0)


def test_beta_by_pattern_and_momentum_choices_train():
    for momentum in ("keep", "carry", "clear"):
        module = seeded()
        fit(module, callback(beta={"conv*": 0.5, "*": 1.0}, rescale_momentum=momentum))
        assert module.losses[-1] < module.losses[0]
        assert all(torch.isfinite(weight).all() for weight in module.state_dict().values())


def test_training_lowers_the_loss_for_every_method():
    for options in ({"parametrization": "plain"}, {"rescale_every_n_epochs": None}, {"rescale_every_n_epochs": 1}):
        module = seeded()
        fit(module, callback(**options))
        start, end = (sum(part) / 5 for part in (module.losses[:5], module.losses[-5:]))
        assert 0 < end < 0.8 * start
