"""What a custom training loop saves beside the state dicts of its model and optimizers, and loads to continue."""

from typing import Any

from torch import nn

from lightning_signin.core.masked import SignIn
from lightning_signin.core.mirror import Mirrored
from lightning_signin.core.naming import shown
from lightning_signin.core.structure import (
    Expected,
    anything,
    check_structure,
    each,
    entries,
    number,
    of_type,
    optional,
    row,
    several,
    whole,
)
from lightning_signin.core.weights import SparseWeight, sparse_weights
from lightning_signin.core.wrappers import replica
from lightning_signin.errors import SignInError
from lightning_signin.updates.engine import MaskUpdates
from lightning_signin.weightfiles.factor_state import FACTORS, check_factor_state, factor_state, load_factor_state

State = dict[str, Any]
_VERSION = 2
_STATE = "The sparse state"
_ARGUMENTS = ("update", "total_steps", "seed", "optimizers", "budgets")
_FIX = "Call `sparsify` and `MaskUpdates` with the arguments of the run that saved the state."


def sparse_state(module: nn.Module, updates: MaskUpdates | None = None) -> State:
    """What a sparse run needs to continue bit for bit, beside the state dicts of its model and optimizers.

    The state dict has θ; this has the factors behind it with their balance m² − w², the masks, and what the update rule
    has done so far. The position in the data and the process's random generators are the loop's own, as in dense
    training.

    Args:
        module: A module after `sparsify`, wrapped (by DistributedDataParallel, Fabric, …) or not. If ``fully_shard``
            has sharded it, all ranks must call this together.
        updates: What moves its masks, if they move.

    Returns:
        Tensors and plain values only, which ``torch.load(..., weights_only=True)`` reads. As in a state dict, the
        tensors are those of the module, not copies.

    Raises:
        SignInError: If the module has no sparse weights.

    Example:
        >>> import io, torch
        >>> from lightning_signin import effective_weights, sparsify
        >>> net, file = sparsify(nn.Linear(20, 10), sparsity=0.8), io.BytesIO()
        >>> torch.save({"model": net.state_dict(), "sparse": sparse_state(net)}, file)
        >>> saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        >>> again = sparsify(nn.Linear(20, 10), sparsity=0.8, seed=1)
        >>> _ = again.load_state_dict(saved["model"])
        >>> load_sparse_state(again, saved["sparse"])
        >>> all(torch.equal(own, other) for own, other in zip(net.parameters(), again.parameters()))
        True
    """
    weights = sparse_weights(module)
    if not weights:
        raise SignInError("The module has no sparse weights. Call `sparsify` first.")
    forms = {name: _form(weight) for name, weight in weights.items()}
    of_updates = None if updates is None else {**_arguments(updates), **updates.state()}
    return {"version": _VERSION, "forms": forms, **factor_state(module), "updates": of_updates}


def load_sparse_state(module: nn.Module, state: State, updates: MaskUpdates | None = None) -> None:
    """Continue a run from what `sparse_state` gave: masks and factors, and the update rule's state.

    Load the model's state dict first: it sets θ, and resets m and w. Masks may be others than those of `sparsify`
    here, e.g. after GMP; then the factors change their sizes, so wrap the module in DistributedDataParallel afterwards.
    The optimizers' state may be loaded before or after.

    Args:
        module: A module after `sparsify` with the same arguments.
        state: What `sparse_state` returned.
        updates: An object made with the arguments of the one that was saved.

    Raises:
        SignInError: If the state is that of another module, another `parametrization` or β, or another update rule, or
            is damaged. Nothing is changed then.

    Example:
        See `sparse_state`.
    """
    check_structure(_STATE, state, entries({"version": anything}))
    if state["version"] != _VERSION:
        raise SignInError(f"The sparse state has version {state['version']}, and this package reads {_VERSION}.")
    named = {"forms": each(of_type(str)), "updates": optional(of_type(dict))}
    check_structure(_STATE, state, entries({**FACTORS, **named}))
    masks = check_factor_state(module, state)
    weights, saved = sparse_weights(module), state["updates"]
    check_structure(_STATE, state, entries({"forms": entries(dict.fromkeys(weights, anything))}))
    for name, weight in weights.items():
        if (now := _form(weight)) != state["forms"][name]:
            raise SignInError(f"{name} was saved as {state['forms'][name]}, and is {now}. {_FIX}")
        if replica(module) is not None and tuple(state["factors"][name][0].shape) != tuple(weight.factors[0].shape):
            raise SignInError(
                f"{name} was saved with {int(masks[name].sum())} kept weights, for which its parameters change "
                "their sizes: DistributedDataParallel cannot follow. Load the state before wrapping the module."
            )
    if saved is not None:
        check_structure(_STATE, state, entries({"updates": entries(dict.fromkeys(_ARGUMENTS, anything))}))
    if (saved is None) != (updates is None):
        what = "without mask updates" if saved is None else f"with {saved['update']}"
        fix = "Leave out `updates`." if saved is None else "Pass the MaskUpdates of this run as `updates`."
        raise SignInError(f"The sparse state was saved {what}. {fix}")
    for name, value in _arguments(updates).items() if updates is not None else ():
        if saved[name] != value:
            raise SignInError(f"The mask updates were saved with {name}={saved[name]}, here it is {value}. {_FIX}")
    if updates is not None:
        check_structure(_STATE, state, entries({"updates": expected_of_updates(updates)}))
    load_factor_state(module, state)
    if updates is not None:
        updates.load_state(saved)


def expected_of_updates(updates: MaskUpdates) -> Expected:
    """The structure of the state that mask updates save, as they do it in this run."""
    targets = {name: whole(0, weight.storage.shape.numel()) for name, weight in updates.weights.items()}
    lanes = several(row(whole(), whole(-1)), len(updates.lanes))
    return entries({"lanes": lanes, "targets": entries(targets), "mask_change": number})


def _arguments(updates: MaskUpdates) -> State:
    """The arguments on which the later masks depend."""
    budgets = [list(target) for target in updates.choice.targets]
    values = (shown(updates.rule), updates.total, updates.seed, len(updates.lanes), budgets)
    return dict(zip(_ARGUMENTS, values, strict=True))


def _form(weight: SparseWeight) -> str:
    """How θ is computed from the trainable tensors, in words."""
    own = weight.parametrization
    form = "a plain masked weight"
    if isinstance(own, SignIn | Mirrored):
        form = f"{'m ⊙ w' if isinstance(own, SignIn) else 'θ in the mirror'} with beta={own.beta}"
    return form if own.elementwise_map is None else f"{own.elementwise_map} of {form}"
