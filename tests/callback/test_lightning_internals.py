"""Contracts of `callback/lightning_internals.py`: a version of Lightning that moves one fails by its name.

Most are asked in the second batch of a real fit.
"""

import copy

import lightning
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import RandomSampler, SequentialSampler

from lightning_signin.callback import lightning_internals as insides
from lightning_signin.export.checkpoint import rest_of
from tests.small import Small, loader, seeded, trainer


class Ask(Callback):
    """Asks a function in the second batch."""

    def __init__(self, function) -> None:
        self.function, self.asked = function, False

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 1 and not self.asked:
            self.asked = True
            self.function(trainer, module)


def fit(function, *callbacks, module=None, **options):
    ask = Ask(function)
    trainer(*callbacks, ask, **{"epochs": 1, **options}).fit(module or seeded(), loader())
    assert ask.asked


def average():
    for callback in (WeightAveraging(), StochasticWeightAveraging(0.1)):
        found = []
        fit(lambda *_, of=callback, found=found: found.append(insides.average_of(of)), callback)
        assert list(getattr(found[0], "module", found[0]).state_dict()) == list(Small().state_dict())


def restoring(tmp_path):
    calls = []

    class Made(Small):
        def configure_model(self):
            calls.append("configure_model")

        def configure_optimizers(self):
            calls.append("configure_optimizers")
            return super().configure_optimizers()

    fit(lambda trainer, _: trainer.save_checkpoint(tmp_path / "some.ckpt"))
    resuming = trainer(epochs=2)
    connector = insides.checkpoint_connector(resuming)
    plain = getattr(connector, insides.RESTORE)

    def restore(checkpoint_path=None, *args):
        calls.append(checkpoint_path)
        plain(checkpoint_path, *args)

    setattr(connector, insides.RESTORE, restore)
    resuming.fit(Made(), loader(), ckpt_path=tmp_path / "some.ckpt")
    assert [str(call) for call in calls] == ["configure_model", str(tmp_path / "some.ckpt"), "configure_optimizers"]


def distributed_checkpoint():
    assert insides.saves_shards(ModelParallelStrategy())
    assert not insides.saves_shards(ModelParallelStrategy(save_distributed_checkpoint=False))


def ddp_arguments():
    assert insides.finds_unused_parameters(DDPStrategy(find_unused_parameters=True))
    assert not insides.finds_unused_parameters(DDPStrategy())


def strict_loading():
    for unset in (True, False):
        module = Small()
        if not unset:
            module.strict_loading = True
        before = dict(vars(module))
        with insides.loads_any_entries(module):
            assert not module.strict_loading
            module.load_state_dict({}, strict=module.strict_loading)
        assert vars(module) == before
        assert module.strict_loading


def tuned(tmp_path):
    class Asks(Small):
        lr = 0.1

        def setup(self, stage):
            self.found = insides.is_tuned(self.trainer)

    module = Asks()
    Tuner(trainer(default_root_dir=tmp_path)).lr_find(module, loader(), num_training=2)
    assert module.found
    trainer(LearningRateFinder(num_training_steps=2), epochs=1, default_root_dir=tmp_path).fit(module, loader())
    assert not module.found


def logging(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(lambda trainer, _: insides.log_to_loggers(trainer, {"of a layer": 0.5}), logger=logger)
    assert "of a layer" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


def restart():
    def ask(trainer, _):
        loop = trainer.fit_loop
        assert not loop.restarting
        loop.restarting = False
        assert loop.restarting  # with max_steps, whatever it is told
        insides.leave_restart(loop)
        assert not loop.restarting
        assert not loop.epoch_loop.restarting

    fit(ask, epochs=-1, max_steps=3)


def combined_loader():
    def ask(trainer, _):
        combined = insides.training_loader(trainer.fit_loop)
        assert isinstance(combined, CombinedLoader)
        assert combined.flattened == [trainer.train_dataloader]
        insides.set_training_loader(loop := copy.copy(trainer.fit_loop), other := CombinedLoader([]))
        assert insides.training_loader(loop) is other
        assert insides.training_loader(trainer.fit_loop) is combined

    assert insides.training_loader(trainer().fit_loop) is None
    fit(ask)


def source():
    def ask(trainer, _):
        given = insides.requested_loaders(insides.data_source(trainer))
        assert given is trainer.train_dataloader

    fit(ask)


def preparing():
    def ask(trainer, _):
        made = insides.prepared_loader(trainer, loader())
        assert isinstance(made.sampler, RandomSampler)
        assert insides.prepared_loader(trainer, [1]) == [1]

    fit(ask)


def in_order():
    combined = CombinedLoader(loader(), "max_size_cycle")
    insides.leave_in_order(combined)
    assert isinstance(combined.flattened[0].sampler, SequentialSampler)


def limits():
    assert [insides.limited(10, limit) for limit in (0.5, 3, 1.0)] == [5, 3, 10]
    assert insides.limited(float("inf"), 1.0) == float("inf")


def iterable():
    def ask(trainer, _):
        source = insides.data_source(trainer)
        insides.check_iterable(loader(), source)
        with pytest.raises(TypeError, match="invalid dataloader"):
            insides.check_iterable(object(), source)

    fit(ask)


def mode():
    for mode in ("min_size", "max_size_cycle"):
        assert insides.mode_of(CombinedLoader([], mode)) == mode


def transfer():
    def ask(_, module):
        assert insides.before_transfer(module, 3) == 6

    class Twice(Small):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return 6 if batch == 3 else batch

    fit(ask, module=Twice())


def optimizers():
    def ask(trainer, module):
        made, schedules = insides.make_optimizers(module)
        assert type(made[0]) is type(trainer.optimizers[0])
        assert schedules[0].scheduler.optimizer is made[0]
        assert schedules[0].interval == "step"
        (wrapped,) = insides.wrapped_optimizers(trainer.strategy)
        assert isinstance(wrapped, LightningOptimizer)
        assert module.optimizers() is wrapped
        assert wrapped.optimizer is trainer.optimizers[0]
        assert set(insides.OF_OPTIMIZERS) <= set(vars(trainer.strategy))
        assert set(insides.OF_LOADERS) <= set(vars(trainer.fit_loop))

    fit(ask)


def on_demand():
    """Without the attributes everything that is public asks for them, and nothing else holds them."""

    def ask(trainer, _):
        strategy, loop = copy.copy(trainer.strategy), copy.copy(trainer.fit_loop)
        for holder, names in ((strategy, insides.OF_OPTIMIZERS), (loop, insides.OF_LOADERS)):
            for name in names:
                del vars(holder)[name]
        for read in (lambda: strategy.optimizers, lambda: strategy.lr_scheduler_configs, lambda: loop.max_batches):
            with pytest.raises(AttributeError):
                read()
        strategy.optimizers = trainer.optimizers
        assert len(insides.wrapped_optimizers(strategy)) == 1

    fit(ask)


def strategy():
    def ask(trainer, module):
        found, own = copy.copy(trainer), copy.copy(trainer.strategy)
        other, before = Small(), trainer.strategy
        insides.give_strategy(found, own, other)
        found.loggers = [DummyLogger()]
        assert found.strategy is own
        assert found.lightning_module is other
        assert own.model is other
        assert trainer.strategy is before
        assert trainer.lightning_module is module
        assert trainer.loggers == []

    fit(ask)


def hyper_parameters_name():
    class Saving(Small):
        def __init__(self, width=3):
            super().__init__()
            self.save_hyperparameters()

    def ask(_, module):
        rest = rest_of(module)
        assert rest[module.CHECKPOINT_HYPER_PARAMS_NAME] == module._hparams_name == "kwargs"
        assert rest[module.CHECKPOINT_HYPER_PARAMS_KEY] == {"width": 3}

    fit(ask, module=Saving())


CONTRACTS = {
    "WeightAveraging._average_model, StochasticWeightAveraging._average_model": average,
    "Trainer._checkpoint_connector, _restore_modules_and_callbacks": restoring,
    "ModelParallelStrategy._save_distributed_checkpoint": distributed_checkpoint,
    "DDPStrategy._ddp_kwargs": ddp_arguments,
    "LightningModule._strict_loading": strict_loading,
    "LearningRateFinder._early_exit": tuned,
    "Trainer._logger_connector.log_metrics": logging,
    "_Loop.restarting, reset_restart_stage": restart,
    "_FitLoop._combined_loader": combined_loader,
    "_FitLoop._data_source, _request_dataloader": source,
    "Trainer._data_connector._prepare_dataloader": preparing,
    "_resolve_overfit_batches": in_order,
    "_parse_num_batches": limits,
    "_check_dataloader_iterable": iterable,
    "CombinedLoader._mode": mode,
    "LightningModule._on_before_batch_transfer": transfer,
    "_init_optimizers_and_lr_schedulers, Strategy._lightning_optimizers": optimizers,
    "Strategy._optimizers, lr_scheduler_configs, _FitLoop.max_batches": on_demand,
    "Trainer._accelerator_connector, Strategy._lightning_module": strategy,
    "LightningModule._hparams_name": hyper_parameters_name,
}


@pytest.mark.parametrize("name", CONTRACTS, ids=lambda name: f"{name} of lightning {lightning.__version__}")
def test_lightning_has(name, tmp_path):
    contract = CONTRACTS[name]
    contract(*[tmp_path] * contract.__code__.co_argcount)
