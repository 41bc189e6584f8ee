"""The numbers that are logged for a sparse module, by name."""

from torch import nn

from lightning_signin.core.weights import sparse_weights, sparsity
from lightning_signin.metrics.model_sparsity import model_sparsity
from lightning_signin.metrics.scaling import mean_scaling, scaling_by_weight
from lightning_signin.metrics.sign_flips import SignFlips

# The stages of `SignFlips` → their names in logs.
_WHOLE = {
    "start": "sign_flips",
    "last": "sign_flips_since_last",
    "start_to_warmup": "flips_start_to_warmup",
    "warmup": "flips_warmup_to_now",
}
_LAYER = {"start": "flips", "start_to_warmup": "flips_start_to_warmup", "warmup": "flips_warmup_to_now"}


def whole_numbers(module: nn.Module, flips: SignFlips) -> dict[str, float]:
    """For the whole module: ``sparsity``, ``model_sparsity``, sign flips by stage, and ``scaling`` of products m ⊙ w.

    Args:
        module: A module after `sparsify`.
        flips: The module's metric, already updated.

    Returns:
        The numbers by the names under which they are logged, without prefix.
    """
    numbers = {"sparsity": sparsity(module), "model_sparsity": model_sparsity(module)}
    numbers |= {_WHOLE[stage]: share for stage, share in flips.compute().items()}
    scaling = mean_scaling(module)
    return numbers if scaling is None else numbers | {"scaling": scaling}


def layer_numbers(module: nn.Module, flips: SignFlips) -> dict[str, float]:
    """For every sparse weight, as ``layer/<what>/<plain name>``: density, flips, scaling and its spread."""
    numbers = {}
    for name, weight in sparse_weights(module).items():
        numbers[f"layer/density/{name}"] = weight.kept / weight.storage.shape.numel()
    for name, stages in flips.by_layer().items():
        numbers |= {f"layer/{_LAYER[stage]}/{name}": share for stage, share in stages.items() if stage in _LAYER}
    for name, scaling in scaling_by_weight(module).items():
        numbers |= {f"layer/scaling/{name}": scaling.mean, f"layer/scaling_spread/{name}": scaling.spread}
    return numbers
