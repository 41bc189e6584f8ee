"""``lightning-signin fit``, ``validate``, ``test``, ``predict``: LightningCLI, with a summary at the end of a fit."""

import warnings
from pathlib import Path
from typing import Any

import jsonargparse  # noqa: F401  (if it is missing, Lightning would fail later with a less clear error)
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_signin.callback import SignInCallback
from lightning_signin.export.safetensors import write_safetensors
from lightning_signin.weightfiles.saved import SavedWeights, read_weights


def run(arguments: ArgsType) -> None:
    """Run a LightningCLI on any model and data given by class path."""
    silence_lightning()
    SignInCLI(args=arguments, save_config_kwargs={"overwrite": True})


def silence_lightning() -> None:
    """Silence Lightning's warnings about its own code: passing arguments to LightningCLI, and a deprecated function."""
    for message in ("LightningCLI's args parameter", ".*LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=message)


class SignInCLI(LightningCLI):
    """LightningCLI that ends a sparse fit with a test, a merged file and a summary."""

    def after_fit(self) -> None:
        """Test, write ``merged.safetensors`` into the log folder, print the summary."""
        trainer: Any = self.trainer
        sign_in = next((c for c in trainer.callbacks if isinstance(c, SignInCallback)), None)
        if sign_in is None:
            return
        logged = dict(trainer.callback_metrics)
        lines = tested(self)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective call
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        weights = read_weights(self.model)
        weights.describe(sign_in.state_dict())
        lines += [
            ("sparsity", f"{logged['signin/sparsity']:.2%} of the selected weights are zero"),
            ("sign flips", f"{logged['signin/sign_flips']:.2%} of the others changed sign since the start"),
        ]
        finish(weights, folder, lines)


def tested(cli: LightningCLI) -> list[tuple[str, str]]:
    """Test the model in its current state, if it and its data support that: names and values of what was logged."""
    sources = [cli.model] if cli.datamodule is None else [cli.model, cli.datamodule]
    if not is_overridden("test_step", cli.model) or not any(is_overridden("test_dataloader", s) for s in sources):
        return []
    results = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return [(name, f"{value:.4f}") for result in results for name, value in result.items()]


def finish(weights: SavedWeights, folder: Path, lines: list[tuple[str, str]]) -> None:
    """Write ``merged.safetensors`` into a folder, and print a summary with its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "merged.safetensors"
    write_safetensors(weights, path)
    lines = [*lines, ("merged file", f"{path}  ({path.stat().st_size / 1e6:.2f} MB)")]
    print("\n" + "\n".join(f"  {name:14}{value}" for name, value in lines))
