"""Runs of unusual forms: tuned, without an end, of unknown length, with a step that draws its own batches."""

from functools import partial
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, IterableDataset

from lightning_signin import SignInCallback
from tests.small import Masks, Small, callback, copies, data, differing, loader, seeded, trainer

UNKNOWN = "The length of the run is unknown"


class Tuned(Small):
    lr, batch_size = 0.1, 8

    def train_dataloader(self):
        return DataLoader(data(), self.batch_size)

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def find_lr(run, module):
    Tuner(run).lr_find(module, num_training=8)


def scale_batch(run, module):
    Tuner(run).scale_batch_size(module, max_trials=2)


@pytest.mark.parametrize("tune", [find_lr, scale_batch])
@pytest.mark.parametrize("options", [{}, {"parametrization": "plain"}, {"mask": "snip"}, {"flip_signs": 0.5}])
def test_a_tuner_leaves_the_model_as_it_was(tmp_path, tune, options):
    module = seeded(kind=Tuned)
    before = copies(module)
    tune(trainer(callback(**options), default_root_dir=tmp_path), module)
    assert not differing(copies(module), before)


@pytest.mark.parametrize("trained", [False, True])
def test_a_fit_after_a_tuner_starts_as_without_it(tmp_path, trained):
    found = []
    for tuned in (False, True):
        module, sparse, noted = seeded(kind=Tuned), callback(), Masks()
        if trained:
            trainer(sparse, epochs=1).fit(module)
        if tuned:
            scale_batch(trainer(sparse, default_root_dir=tmp_path), module)
            module.batch_size = 8
        torch.manual_seed(5)
        trainer(sparse, noted, epochs=1).fit(module)
        found.append((noted.found, copies(module)))
    assert not differing(found[0][0], found[1][0])
    assert not differing(found[0][1], found[1][1])


def test_a_finder_within_a_fit_keeps_the_mask(tmp_path):
    module = seeded(kind=Tuned)
    run = trainer(LearningRateFinder(num_training_steps=8), callback(), epochs=1, default_root_dir=tmp_path)
    run.fit(module)
    assert (module.fc1.weight == 0).float().mean() > 0.5


class Draws(Small):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("options", [{}, {"update": "rigl"}, {"parametrization": "plain", "log_layers": True}])
def test_a_step_that_draws_its_own_batches_runs(options):
    module = Draws()
    run = trainer(callback(**options), epochs=2)
    run.fit(module, loader())
    assert len(module.losses) == 20
    assert set(run.callback_metrics) >= {"signin/sparsity", "signin/sign_flips"}


@pytest.mark.parametrize("arguments", [{"parametrization": "plain"}, {"parametrization": "str"}, {"rescale_until": 3}])
def test_a_run_without_an_end_is_refused_only_where_a_share_of_it_counts(arguments):
    run = trainer(SignInCallback(sparsity=0.5, **arguments), epochs=-1, max_time={"milliseconds": 200})
    run.fit(Small(), loader())
    assert run.global_step > 0
    with pytest.raises(ValueError, match="is a fraction of the run, which has neither `max_epochs` nor `max_steps`"):
        trainer(SignInCallback(sparsity=0.5), epochs=-1, max_time={"seconds": 1}).fit(Small(), loader())


class Stream(IterableDataset):
    """Has no length."""

    def __iter__(self):
        return iter(list(data()))


@pytest.mark.parametrize(
    "options", [{"update": "one-shot"}, {"update": "rigl"}, {"parametrization": "spred"}, {"parametrization": "pilot"}]
)
def test_data_without_a_length_is_refused_where_the_length_counts(options):
    module = Small()
    with pytest.raises(ValueError, match=UNKNOWN):
        trainer(callback(**options)).fit(module, DataLoader(Stream(), 8))
    assert module.losses == []
    run = trainer(callback(**options), max_steps=20)
    run.fit(module, DataLoader(Stream(), 8))
    assert run.global_step == 20


@pytest.mark.parametrize("options", [{}, {"rescale_until": 0.5}, {"parametrization": "plain"}])
def test_data_without_a_length_is_enough_where_only_epochs_count(options):
    module = seeded()
    trainer(callback(**options), epochs=3).fit(module, DataLoader(Stream(), 8))
    assert len(module.losses) == 30


def test_hooks_that_have_no_name_are_called():
    called = []
    hooks = {"on_fit_start": partial(lambda *_: called.append("start")), "on_train_end": Mock()}
    trainer(LambdaCallback(**hooks), callback(), epochs=1).fit(Small(), loader())
    assert called == ["start"]
    assert hooks["on_train_end"].call_count == 1


@pytest.mark.parametrize("rule", ["set", "mest", "rigl", "gmp", "one-shot"])
@pytest.mark.parametrize("batches", [1, 3])
def test_fast_dev_run_is_too_short_for_no_rule(rule, batches):
    module = Small()
    trainer(callback(update=rule), fast_dev_run=batches).fit(module, loader(), loader())
    assert len(module.losses) == batches


def test_fast_dev_run_names_what_is_wrong():
    options = {"update": "rigl", "parametrization": "powerprop"}
    with pytest.raises(ValueError, match="lets weights come back at θ = 0"):
        trainer(callback(**options), fast_dev_run=True).fit(Small(), loader(), loader())
