"""Arguments, callbacks and optimizers that are refused before training."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from lightning_signin import SignInCallback
from tests.small import Small, callback, loader, seeded, trainer


def test_optimizer_that_forgets_a_weight_whose_mask_moves_is_an_error():
    module = seeded()
    module.configure_optimizers = lambda: torch.optim.SGD(module.fc1.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"conv\.weight is in no optimizer, and its mask moves: what it grows would"):
        trainer(callback(update="set")).fit(module, loader())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 90}, r"`sparsity` must be in \[0, 1\), got 90\. Pass the fraction of zeros, e\.g\. 0\.9"),
        (
            {"mask": "snap"},
            "`mask` must be one of 'random', 'magnitude', 'snip'.* or the import path of a function or.*; got 'snap'",
        ),
        ({"distribution": "even"}, "`distribution` must be one of 'balanced', 'uniform', 'erk', 'global'; got 'even'"),
        ({"storage": "sparse"}, "`storage` must be one of 'auto', 'compact', 'dense'; got 'sparse'"),
        ({"rescale_momentum": "drop"}, "`rescale_momentum` must be one of 'keep', 'carry', 'clear'; got 'drop'"),
        ({"beta": 0}, "`beta` must be above 0, got 0"),
        ({"beta": {"*": -1.0}}, "`beta` must be above 0, got -1.0"),
        ({"frobenius_decay": -1e-4}, "`frobenius_decay` must be at least 0, got -0.0001"),
        (
            {"rescale_every_n_epochs": 0},
            "`rescale_every_n_epochs` must be a whole number of at least 1, got 0. Pass None",
        ),
        ({"rescale_every_n_steps": 10}, "are both set. To count in steps, pass rescale_every_n_epochs=None"),
        ({"rescale_until": 1.5}, r"`rescale_until` as a fraction must be in \[0, 1\], got 1.5. An epoch is an int"),
    ],
    ids=str,
)
def test_bad_argument_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        SignInCallback(**options)


@pytest.mark.parametrize("first", [True, False], ids=["before it", "after it"])
def test_callback_that_would_break_the_fit_is_refused_before_training(first):
    module, companion = seeded(), ModelPruning("l1_unstructured")
    with pytest.raises(ValueError, match="ModelPruning replaces the weights that SignInCallback replaces"):
        trainer(*((companion, callback()) if first else (callback(), companion))).fit(module, loader())
    assert module.losses == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"include": ["encoder.*"]}, r"`include` pattern 'encoder\.\*' matches no weight. Names look like: conv\."),
        ({"exclude": ["*"]}, "Nothing to sparsify"),
        ({"beta": {"fc9*": 1.0}}, r"`beta` pattern 'fc9\*' matches no sparse weight"),
        ({"beta": {"fc*": 1.0}}, r"`beta` has no pattern for conv.weight. End it with a default, '\*': value"),
        ({"sparsity": 0.9999}, "keeps 0 of 1242 weights, but each of 3 layers must keep at least one weight"),
    ],
    ids=str,
)
def test_argument_that_does_not_fit_the_model_is_refused_before_training(options, text):
    module = seeded()
    with pytest.raises(ValueError, match=text):
        trainer(callback(**options)).fit(module, loader())
    assert module.losses == []
    assert type(module.fc1) is nn.Linear


def test_model_without_weights_is_refused():
    class Nothing(Small):
        def __init__(self):
            super().__init__()
            del self.conv, self.fc1, self.fc2

    with pytest.raises(ValueError, match="Nothing to sparsify: the model has no trainable weight of a known kind"):
        trainer(callback()).fit(Nothing(), loader())


def test_run_without_end_needs_an_epoch_for_rescale_until():
    with pytest.raises(ValueError, match="is a fraction of the run, which has neither `max_epochs` nor `max_steps`"):
        trainer(callback(rescale_until=0.5), epochs=-1).fit(seeded(), loader())


@pytest.mark.parametrize("momentum", ["carry", "clear"])
def test_optimizer_that_a_rescale_has_no_rule_for_is_refused_before_training(momentum):
    module = seeded("Adamax")
    with pytest.raises(ValueError, match=r"no rule for the state \['exp_inf'\] of Adamax\. Use momentum='keep'"):
        trainer(callback(rescale_momentum=momentum)).fit(module, loader())
    assert module.losses == []
    with pytest.raises(ValueError, match=r"A rescale has no rule for the state \['momentum_buffer'\] of RMSprop"):
        trainer(callback(rescale_momentum=momentum)).fit(seeded("RMSprop", lr=0.01, momentum=0.9), loader())
    trainer(callback(rescale_momentum=momentum), epochs=2).fit(seeded("RMSprop", lr=0.001), loader())
    trainer(callback(rescale_momentum="keep"), epochs=2).fit(seeded("Adamax"), loader())
    trainer(callback(rescale_momentum=momentum, rescale_every_n_epochs=None), epochs=1).fit(seeded("Adamax"), loader())
