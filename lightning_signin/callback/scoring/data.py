"""Scoring with the user's own training step on the user's own data, before the fit and without side effects."""

import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_signin.callback import lightning_internals as insides
from lightning_signin.callback.scoring.trainer import Steps, number_of_batches, scoring_trainer
from lightning_signin.callback.two_packages import in_both
from lightning_signin.core.torch_internals import set_worker_iterator, tree_map, worker_iterator
from lightning_signin.errors import SignInError, WrongTypeError, in_one_line
from lightning_signin.objective.network import Network, as_network, network_with
from lightning_signin.objective.sample import Call, one_sample
from lightning_signin.objective.training_data import Losses, network_in_step
from lightning_signin.randomness import generators
from lightning_signin.verbs.model import merge_

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class LightningData:
    """The `Objective` of a fit that is about to start: its training step and its training batches.

    Training steps run on a copy of the module, which has a stand-in for the trainer: its loggers are dummies, its
    optimizers take no step. Nothing is computed until a score asks for it. What cannot be undone: changes to counters,
    caches and files of data sets, and to the original module if a hook refers to it directly (a lambda that holds it).

    Args:
        trainer: The trainer, after ``setup``.
        module: The plain module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer, self.module = trainer, module
        self.example_input = module.example_input_array
        self._held = generators.Held()
        self._iterators: dict[int, tuple[Any, Any]] = {}  # earlier iterators of loaders with persistent workers
        self._steps: WeakKeyDictionary[nn.Module, Steps] = WeakKeyDictionary()
        self._asked = False

    @property
    def shows_network(self) -> bool:
        """With an example input, or after a score has run training steps; else the fit's first step shows it."""
        return self.example_input is not None or self._asked

    @property
    def batches(self) -> Iterator[Any]:
        """This rank's training batches from the start, on the fit's device."""
        parent = next(cls for cls in in_both(LightningModule) if isinstance(self.module, cls))
        has_hooks = any(is_overridden(hook, self.module, parent) for hook in _BATCH_HOOKS)
        module = self._copy() if has_hooks else self.module
        loaders = self._loaders()
        for index, (batch, _, _) in enumerate(iter(loaders)):
            if index >= number_of_batches(loaders):
                return
            batch = insides.before_transfer(module, self.trainer.precision_plugin.convert_input(batch))
            yield module.trainer.strategy.batch_to_device(batch)

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over ranks."""
        return self.trainer.strategy.reduce(tensor, reduce_op="mean")

    def copy(self, module: nn.Module) -> nn.Module:
        """A copy of the module for training steps that train and log nothing.

        Returns:
            The copy, for calls of `loss`.

        Raises:
            SignInError: If it holds something that cannot be copied.
        """
        self._asked, scored = True, self._copy()
        self._steps[scored] = Steps(scored, self._copy)
        return scored

    def network(self, module: nn.Module, weights: Collection[str]) -> Network:
        """A copy of the network that runs the named weights; running it on an example needs no optimizers."""
        if self.example_input is not None:
            return network_with(self._copy(), weights, self.example_input)
        return network_in_step(self, module, weights)

    def called(self, prefix: str, call: Call, weights: Collection[str]) -> Network:
        """A copy of the part of the sparse module that is being called, made plain, as a network.

        Args:
            prefix: What the names of its weights begin with.
            call: Its input, which is left as it is.
            weights: The plain names of the sparse weights.

        Returns:
            The network in float64, with the first sample of the call as its input.
        """
        part = merge_(self._copy().eval()).get_submodule(prefix.removesuffix("."))
        return as_network(part, prefix, weights, one_sample(part, tree_map(_copied, call)))

    def loss(self, module: nn.Module, batch: Any) -> Losses:
        """What the training step minimizes.

        Returns:
            The loss. For manual optimization: the losses that each optimizer steps on, with the parameters that it
            trains, or those of the accumulated gradients if no optimizer steps.

        Raises:
            SignInError: If the training step gives no loss.
            RuntimeError: If it fails.
        """
        assert isinstance(module, in_both(LightningModule))
        step, steps = module.training_step, self._steps[module]
        if is_param_in_hook_signature(step, "dataloader_iter", explicit=True):
            raise SignInError("Masks cannot be scored with a training_step(dataloader_iter): it reads its own batches.")
        arguments = (batch, 0) if is_param_in_hook_signature(step, "batch_idx", min_args=2) else (batch,)
        steps.begin()
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        try:
            with warnings.catch_warnings(), self.trainer.precision_plugin.train_step_context():
                warnings.simplefilter("ignore")  # they are repeated in the fit
                result = step(*arguments)
        except SignInError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"The training step failed during scoring, with {in_one_line(error)}. It runs on a copy of the "
                "module before `on_fit_start`: what it needs must exist after `setup` and `configure_model`"
            ) from error
        for parameter in trained:  # a step may end with a part frozen
            if not parameter.requires_grad:
                parameter.requires_grad_()
        if not module.automatic_optimization:
            if not (losses := steps.losses()):
                raise SignInError(
                    "The training step called no `self.manual_backward(loss)` on a first batch, so there is no loss to "
                    "score with. Use it instead of `loss.backward()`, or choose a mask that needs no data."
                )
            return losses
        loss = result.get("loss") if isinstance(result, dict) else result
        if not isinstance(loss, Tensor):
            raise SignInError(f"The training step returned {result!r} instead of a loss: there is nothing to score on.")
        return loss

    def close(self) -> None:
        """Restore the random generators that data sets and loaders hold, and release their workers."""
        self._held.restore()
        for loader, iterator in self._iterators.values():
            set_worker_iterator(loader, iterator)
        self._iterators = {}

    def _loaders(self) -> CombinedLoader:
        """The training loaders as the fit will have them, with the generators that they hold noted."""
        source = insides.data_source(self.trainer)
        given = insides.requested_loaders(source)
        is_combined = isinstance(given, in_both(CombinedLoader))
        combined = copy.copy(given) if is_combined else CombinedLoader(given, "max_size_cycle")
        if self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Lightning says it in the fit
                insides.leave_in_order(combined)
        combined.flattened = [insides.prepared_loader(self.trainer, loader) for loader in combined.flattened]
        limit, lengths = self.trainer.limit_train_batches, map(sized_len, combined.flattened)
        known = (float("inf") if length is None else length for length in lengths)
        combined.limits = [insides.limited(length, limit) for length in known]
        for holder in (*combined.flattened, self.trainer.datamodule, self.module):  # type: ignore[attr-defined]
            self._held.remember(holder)
        for loader in combined.flattened:
            try:
                insides.check_iterable(loader, source)
            except TypeError as error:
                raise WrongTypeError(str(error)) from error  # in the words of the fit
            if isinstance(loader, Iterator):
                raise SignInError(
                    "The training data is an iterator, which gives its batches only once: those used for scoring would "
                    "be missing from training. Pass a DataLoader, or choose a mask that needs no data."
                )
            if getattr(loader, "persistent_workers", False) and id(loader) not in self._iterators:
                self._iterators[id(loader)] = (loader, worker_iterator(loader))
                set_worker_iterator(loader, None)
        return combined

    def _copy(self, trainer: Trainer | None = None) -> LightningModule:
        try:
            scored = copy.deepcopy(self.module).to(self.trainer.strategy.root_device)
        except Exception as error:
            raise SignInError(
                f"Masks are scored on a copy of the module, but it cannot be copied: {error}. Create what cannot be "
                "copied in `on_fit_start`, or choose a mask that needs no data."
            ) from error
        for hook in ("configure_model", "configure_optimizers"):  # wrapped for this fit, they refer to the original
            scored.__dict__.pop(hook, None)
        scored.log = scored.log_dict = scored.print = lambda *args, **kwargs: None  # type: ignore[method-assign]
        scored.trainer = scoring_trainer(self.trainer, scored, self._loaders) if trainer is None else trainer
        return scored


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf)
