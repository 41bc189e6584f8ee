"""A fit whose masks, weights and rates are noted at every optimizer step."""

from lightning.pytorch import Callback

from lightning_signin import masks
from lightning_signin.core.weights import sparse_weights
from tests.small import BATCHES, callback, copies, loader, seeded, trainer

STEPS = 4 * BATCHES


class Watch(Callback):
    """Notes what there is before and after every optimizer step."""

    def __init__(self) -> None:
        self.masks, self.weights, self.rates, self.probed = [], [], [], []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.probed.append(any(w.parametrization.probe is not None for w in sparse_weights(module).values()))

    def on_train_batch_end(self, trainer, module, *_):
        self.masks.append(masks(module))
        self.weights.append({**copies(module)})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def watched(rule, model=None, sparsity=0.7, data_loader=None, options=None, **arguments):
    module, watch = model or seeded(), Watch()
    runner = trainer(callback(update=rule, sparsity=sparsity, **arguments), watch, **(options or {}))
    runner.fit(module, loader() if data_loader is None else data_loader)
    return module, watch, runner
