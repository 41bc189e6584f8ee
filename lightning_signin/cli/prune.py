"""``lightning-signin prune``: iterative magnitude pruning with the configurations of ``fit``."""

import logging
import warnings
from typing import Any, Literal

import jsonargparse
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_signin.arguments import default, owned_by
from lightning_signin.callback import SignInCallback
from lightning_signin.errors import SignInError
from lightning_signin.iterative import IterativePruning
from lightning_signin.lightning_cli.fit import finish, silence_lightning, tested
from lightning_signin.masks.build import DEFAULT_SPARSITY
from lightning_signin.weightfiles.saved import read_weights


def prune(arguments: ArgsType) -> None:
    """Train the levels that the folder lacks; then test, write ``merged.safetensors`` there, print a summary.

    Raises:
        SignInError: If the configuration has no SignInCallback, or one with arguments that pruning decides.
    """
    silence_lightning()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lightning_signin").setLevel(logging.INFO)  # one line per level
    named: Any = {"parser_kwargs": {"prog": "lightning-signin prune"}, "save_config_kwargs": {"overwrite": True}}
    cli = PruneCLI(args=arguments, run=False, **named)
    pruning = cli.pruning()
    pruning.fit(cli.trainer_of_level, cli.model, datamodule=cli.datamodule)
    lines = tested(cli)
    if cli.trainer.is_global_zero:
        weights = read_weights(pruning.folder.end(pruning.levels.last))
        size = sum(mask.numel() for mask in weights.masks.values())
        share = 1 - sum(weights.kept.values()) / size
        lines += [("levels", f"{pruning.levels.last + 1}")]
        finish(weights, pruning.folder.path, [*lines, ("sparsity", f"{share:.2%} of the selected weights are zero")])


class PruneCLI(LightningCLI):
    """LightningCLI with the arguments of `IterativePruning` that its SignInCallback does not have."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments that SignInCallback does not have."""
        parser.add_argument("--folder", type=str, required=True, help="Folder of the run; resumes an earlier one.")
        parser.add_argument("--rewind", type=Literal["lrr", "wr", "imp"], default="lrr", help="How levels begin.")
        parser.add_argument("--rewind_epoch", type=int | None, default=None, help="For --rewind wr, at least 1.")
        parser.add_argument("--prune_rate", type=float, default=0.2, help="Share of the weights to prune per level.")

    def pruning(self) -> IterativePruning:
        """The `IterativePruning` that the configuration describes."""
        given = {name: self.config[name] for name in ("folder", "rewind", "rewind_epoch", "prune_rate")}
        template = next((c for c in self.trainer.callbacks if isinstance(c, SignInCallback)), None)  # type: ignore[attr-defined]
        if template is None:
            raise SignInError(
                "`trainer.callbacks` must have a SignInCallback, whose `sparsity` and other arguments all levels "
                "use. Add one, as in the recipes."
            )
        return IterativePruning(**given, **arguments_for_pruning(template))

    def trainer_of_level(self, added: list[Callback]) -> Trainer:
        """A new Trainer, with its own callbacks, loggers and ``--optimizer``."""
        config = jsonargparse.Namespace(trainer=self.config["trainer"])
        self.config_init["trainer"] = self.parser.instantiate_classes(config)["trainer"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*configure_optimizers` will be overridden")  # warned at start
            self._add_configure_optimizers_method_to_model(None)
        given = self.config_init["trainer"]["callbacks"] or []
        others = [c for c in (given if isinstance(given, list) else [given]) if not isinstance(c, SignInCallback)]
        return self.instantiate_trainer(callbacks=[*others, *added])


def arguments_for_pruning(template: SignInCallback) -> dict[str, Any]:
    """The arguments of `IterativePruning` that correspond to a callback's.

    Returns:
        Keyword arguments of `IterativePruning`.

    Raises:
        SignInError: If the callback has arguments that pruning decides.

    Example:
        >>> arguments_for_pruning(SignInCallback(sparsity=0.95))["sparsity"]
        0.95
    """
    given = dict(vars(template.arguments))
    for name in owned_by("prune"):
        if (value := given.pop(name)) != default(name):
            raise SignInError(
                f"`prune` decides {name!r} itself, but the configuration's SignInCallback has {name}={value!r}. Leave "
                "it out, or use `fit`."
            )
    sparsity, distribution, structure = (given.pop(name) for name in ("sparsity", "distribution", "structure"))
    return {
        "sparsity": DEFAULT_SPARSITY if sparsity is None else sparsity,
        "distribution": distribution or "global",
        "structure": structure or "unstructured",
        "sign_in": given,
    }
