"""Which checkpoints a run can resume, and the errors for those that it cannot."""

from typing import Any

from lightning_signin.core.structure import check_structure, entries, of_type, several
from lightning_signin.errors import ALTERED, SignInError
from lightning_signin.weightfiles.factor_state import FACTORS

# Lightning prints this key where a checkpoint is resumed without the callback, and asks to add it.
STATE_KEY = "lightning_signin.SignInCallback"
VERSION = 2  # of the form of the callback's state in a checkpoint; to be raised when the form changes
OUR_STATE = "The checkpoint's state of SignInCallback"
NOT_SPARSE = (
    "The checkpoint was not written by a run with SignInCallback, or holds weights only, so there is no sparse run to "
    "resume. To start one from its weights, load them into the model "
    "(`model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])`) and call `fit` without `ckpt_path`."
)

_PARTS: tuple[str, ...] = ("arguments", "masks", "digest", "storage", "factors")  # the callback's state in a checkpoint
_PARTS += ("sign_flips", "seen", "updates", "decay", "losses", "frozen", "position")
_INCOMPLETE = f"{OUR_STATE} has {{}}: {ALTERED}"


def check_same_run(saved: dict[str, Any], here: dict[str, Any], any_seed: bool) -> None:
    """Check that this run has the arguments of the run that wrote a checkpoint.

    Args:
        saved: The arguments that decide masks and factors, from the checkpoint.
        here: The same arguments of this run.
        any_seed: The callback has no seed of its own: it takes the checkpoint's mask, whatever its seed.

    Raises:
        SignInError: If an argument differs, or the checkpoint lacks one.
    """
    for name, value in here.items():
        if name not in saved:
            raise SignInError(_INCOMPLETE.format(f"'arguments' without {name!r}"))
        if saved[name] != value and not (name == "seed" and any_seed):
            raise SignInError(
                f"The checkpoint was trained with {name}={saved[name]!r}, but this callback has {name}={value!r}, "
                f"which means another mask or other factors. Pass {name}={saved[name]!r} to resume; to start anew from "
                "its weights, load its state_dict into the model and call `fit` without `ckpt_path`."
            )


def check_complete(state: dict[str, Any]) -> None:
    """Check the version and the structure of the callback's state in a checkpoint.

    What depends on the module is checked later, where it is loaded.

    Raises:
        SignInError: If the state has another version, or was altered.
    """
    check_structure(OUR_STATE, state, of_type(dict))
    if state.get("version") != VERSION:
        raise SignInError(
            f"{OUR_STATE} has version {state.get('version')}, and this release of "
            f"lightning-signin reads version {VERSION}. Resume with the release that wrote it, or start a new run from "
            "the checkpoint's state_dict."
        )
    for key in _PARTS:
        if key not in state:
            raise SignInError(_INCOMPLETE.format(f"no {key!r}"))
    check_structure(OUR_STATE, state, entries({"arguments": of_type(dict), "frozen": several(of_type(str)), **FACTORS}))
