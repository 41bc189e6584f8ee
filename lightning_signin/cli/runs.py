"""``lightning-signin fit`` and its siblings: LightningCLI, and what a person wants to know at the end of a fit."""

import warnings
from pathlib import Path
from typing import Any

import jsonargparse  # noqa: F401  (where it is missing, Lightning would fail later and less plainly)
from lightning.pytorch.cli import ArgsType, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_signin.callback import SignInCallback
from lightning_signin.export.safetensors import write_safetensors
from lightning_signin.saved import read_weights


def run(arguments: ArgsType) -> None:
    """Run a LightningCLI on any model and data that are given by class path."""
    # Said by Lightning about itself: that it was given arguments, and that it calls a deprecated function of torch.
    for message in ("LightningCLI's args parameter", ".*LeafSpec.* is deprecated"):
        warnings.filterwarnings("ignore", message=message)
    SignInCLI(args=arguments, save_config_kwargs={"overwrite": True})


class SignInCLI(LightningCLI):
    """LightningCLI that ends a sparse fit with a test, a merged file and a summary."""

    def after_fit(self) -> None:
        """Test, write ``merged.safetensors`` into the log folder, print."""
        trainer: Any = self.trainer
        sign_in = next((c for c in trainer.callbacks if isinstance(c, SignInCallback)), None)
        if sign_in is None:
            return
        logged = dict(trainer.callback_metrics)
        sources = [self.model] if self.datamodule is None else [self.model, self.datamodule]
        can_test = is_overridden("test_step", self.model) and any(is_overridden("test_dataloader", s) for s in sources)
        tested = trainer.test(self.model, self.datamodule, verbose=False) if can_test else []
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all ranks
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        folder.mkdir(parents=True, exist_ok=True)
        weights = read_weights(self.model)
        weights.describe(sign_in.state_dict())
        path = write_safetensors(weights, folder / "merged.safetensors")
        lines = [(name, f"{value:.4f}") for result in tested for name, value in result.items()]
        lines += [
            ("sparsity", f"{logged['signin/sparsity']:.2%} of the selected weights are zero"),
            ("sign flips", f"{logged['signin/sign_flips']:.2%} of the others changed sign since the start"),
        ]
        lines += [("merged file", f"{path}  ({path.stat().st_size / 1e6:.2f} MB)")]
        print("\n" + "\n".join(f"  {name:14}{value}" for name, value in lines))
