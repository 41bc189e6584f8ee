"""One run of a sweep, in its own process: ``python -m lightning_signin.sweep.trial RESULT fit …``."""

import json
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.warnings import PossibleUserWarning

from lightning_signin.callback import SignInCallback
from lightning_signin.errors import SignInError
from lightning_signin.lightning_cli.fit import SignInCLI, silence_lightning
from lightning_signin.weightfiles.files.paths import write_whole


class Diverged(SignInError):
    """Raised in a fit whose weights are no longer finite."""


class StopWhereItDiverges(Callback):
    """Ends a fit after the first epoch that leaves non-finite weights: further training cannot recover them."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check all parameters."""
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            raise Diverged(f"diverged: weights are not finite after epoch {trainer.current_epoch + 1}")


class TrialCLI(SignInCLI):
    """The command ``fit``, which keeps the last value of everything logged by the fit and the test after it."""

    measured: dict[str, float]

    def after_fit(self) -> None:
        """Collect the logged values before and after `SignInCLI` tests."""
        self.measured = _numbers(self.trainer)
        super().after_fit()
        self.measured |= _numbers(self.trainer)


def run_trial(arguments: list[str]) -> dict[str, Any]:
    """Run ``fit``; return what it ``measured``, its ``weight_decay`` in words, or its ``error``, and ``warnings``."""
    with _kept_warnings() as kept:
        try:
            silence_lightning()
            warnings.filterwarnings("ignore", message="Experiment logs directory")  # ours, not logs
            options: Any = {"save_config_kwargs": {"overwrite": True}}
            cli = TrialCLI(args=arguments, trainer_defaults={"callbacks": [StopWhereItDiverges()]}, **options)
        except Exception as error:
            traceback.print_exc()
            line = str(error).strip().partition("\n")[0]
            reason = line if isinstance(error, Diverged) else f"{type(error).__name__}: {line}"
            return {"error": reason, "warnings": kept}
        ours: Any = [callback for callback in cli.trainer.callbacks if isinstance(callback, SignInCallback)]  # type: ignore[attr-defined]
        decays = "; ".join(callback.state_dict()["weight_decay"] for callback in ours)
        return {"measured": cli.measured, "warnings": kept, "weight_decay": decays}


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Collect the warnings, which are still shown, except Lightning's advice on speed and logging."""
    kept: list[str] = []
    show = warnings.showwarning

    def show_and_keep(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        is_advice = issubclass(category, PossibleUserWarning) or not issubclass(category, UserWarning)
        if not is_advice and str(message) not in kept:
            kept.append(str(message))
        show(message, category, *place, **more)

    with warnings.catch_warnings():  # the run silences some
        warnings.showwarning = show_and_keep
        yield kept


def _numbers(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _end_with_the_sweep() -> None:
    """Wait for the end of the input, a pipe that the sweep keeps open while it runs, and exit."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    result, *rest = sys.argv[1:]
    outcome = run_trial(rest)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        write_whole(Path(result), json.dumps(outcome).encode())
