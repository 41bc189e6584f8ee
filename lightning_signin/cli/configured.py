"""The model and data of a configuration, before any fit."""

import warnings
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from lightning_signin.lightning_cli.fit import silence_lightning
from lightning_signin.objective.network import Network
from lightning_signin.objective.training_data import TrainingData


@dataclass(frozen=True)
class Configured:
    """The objects that a configuration describes.

    Attributes:
        cli: The LightningCLI, with its trainer.
        model: The complete LightningModule.
    """

    cli: LightningCLI
    model: Any

    def network(self, weights: list[str]) -> Network:
        """The network that runs the named weights, in float64.

        Its input is the model's ``example_input_array``, or else what its training step passes to it for the first
        sample of the first training batch.

        Returns:
            The network, its input, and the names of the weights in it.

        Raises:
            SignInError: If the input is not found.
        """
        source: Any = self.model if self.cli.datamodule is None else self.cli.datamodule
        data = TrainingData(_training_step, example_input=self.model.example_input_array)
        if data.example_input is None:
            data.batches = [next(iter(source.train_dataloader()))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no trainer to log to
            return data.network(self.model, weights)


def configured(arguments: list[str]) -> Configured:
    """Create model and data as ``fit`` with the same arguments does.

    Args:
        arguments: The arguments of ``fit``.

    Returns:
        The model and the command-line object, both set up for ``fit``; nothing has been trained.
    """
    silence_lightning()
    cli = LightningCLI(args=arguments, run=False, save_config_callback=None)
    if cli.datamodule is not None:
        cli.datamodule.prepare_data()
        cli.datamodule.setup("fit")
    cli.model.setup("fit")
    cli.model.configure_model()
    return Configured(cli, cli.model)


def _training_step(module: Any, batch: Any) -> Tensor:
    return module.training_step(batch, 0)
