"""Starting signs and magnitudes: from another run (Section 3, Table 1), or partly flipped (Appendix I, Table 9).

Gadhikar, Jacobs, Zhou, Burkholz: "Sign-In to the Lottery", NeurIPS 2025, arXiv:2504.12801.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_signin.core.numbers import exact, number, whole_number
from lightning_signin.core.weights import sparse_weights
from lightning_signin.core.wrappers import unwrapped
from lightning_signin.errors import SignInError
from lightning_signin.weightfiles.foreign import fit_shape, holds_only_masks, match_names, plain_weights
from lightning_signin.weightfiles.saved import read_weights

Source = str | os.PathLike[str] | Mapping[str, Tensor]


@torch.no_grad()
def transplant_(
    module: nn.Module,
    *,
    names: Sequence[str],
    signs_from: Source | None = None,
    magnitudes_from: Source | None = None,
) -> nn.Module:
    """Start weights with the signs of one run and the magnitudes of another, in place: θ ← sign(s) · |a| (Table 1).

    Where a source gives no value, the module keeps its own: its sign where s = 0, its magnitude where a = 0, and both
    without a source. Pruned weights are such zeros. So every kept weight starts non-zero even if the mask and the signs
    are from different epochs ("Epoch 10 sign + learned mask"), a case that the paper leaves open.

    Args:
        module: A plain module, before `sparsify`.
        names: Plain names of the weights to change; all other parameters stay the module's own.
        signs_from: Anything that `read_weights` reads, or a state dict; its names may have other prefixes.
        magnitudes_from: Like ``signs_from``.

    Returns:
        The same module, with the same parameter objects.

    Raises:
        MissingFileError: If there is no such file.
        SignInError: If the module is sparse or lacks a name; if a source cannot be read, lacks a weight, or has it in
            another shape, as a mask, or with values that are not finite in the module's dtype. Nothing is changed then.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> signs, magnitudes = {"weight": torch.tensor([[-5.0, 5.0]])}, {"weight": torch.tensor([[1.0, 2.0]])}
        >>> transplant_(net, names=["weight"], signs_from=signs, magnitudes_from=magnitudes).weight.tolist()
        [[-1.0, 2.0]]
    """
    if sparse_weights(module):
        raise SignInError("The module is already sparse, but signs are set on plain weights. Call `merge_` first.")
    parameters = _parameters(unwrapped(module), names)
    signs = _read("signs_from", signs_from, parameters)
    magnitudes = _read("magnitudes_from", magnitudes_from, parameters)
    changed = {name: own for name, own in parameters.items() if name in signs or name in magnitudes}
    renewed = {name: _joined(own, signs.get(name), magnitudes.get(name)) for name, own in changed.items()}
    for name in magnitudes:
        if not renewed[name].isfinite().all():
            raise SignInError(
                f"`magnitudes_from` has values of {name} that are too large for {renewed[name].dtype}. Transplant into "
                "a float32 module."
            )
    for name, parameter in changed.items():
        parameter.copy_(renewed[name])
    return module


@torch.no_grad()
def flip_signs_(module: nn.Module, share: float, *, seed: int = 0) -> nn.Module:
    """Flip the sign of a share of the kept weights, in place (Table 9: "95 % correct signs" is a share of 0.05).

    The weights are chosen uniformly over all layers together. The choice depends only on the masks and the seed: it is
    the same on every rank and device and in every storage.

    Args:
        module: A module after `sparsify`.
        share: Fraction to flip, in [0, 1]; 0.5 gives random signs. The count is share · (number of kept weights) in
            exact decimal arithmetic, rounded half to even.
        seed: Seed of the choice.

    Returns:
        The same module. Magnitudes, masks and scalings m² − w² are unchanged.

    Raises:
        SignInError: If ``share`` is outside [0, 1], or the module has no sparse weights.

    Example:
        >>> from lightning_signin import effective_weights, sparsify
        >>> net = sparsify(nn.Linear(10, 10), sparsity=0.6)
        >>> before = effective_weights(net)["weight"]
        >>> int((flip_signs_(net, 0.25).weight * before < 0).sum())
        10
    """
    share = number("share", share, "[0, 1]", "Pass the fraction of wrong signs, e.g. 0.05.")
    generator = torch.Generator().manual_seed(whole_number("seed", seed, least=None))
    weights = sparse_weights(module).values()
    if not weights:
        raise SignInError("The module has no sparse weights whose signs could flip. Call `sparsify` first.")
    counts = [weight.storage.active for weight in weights]
    total = sum(counts)
    flipped = torch.zeros(total, dtype=torch.bool)
    chosen = torch.randperm(total, generator=generator)
    flipped[chosen[: round(exact(share) * total)]] = True
    for weight, flips in zip(weights, flipped.split(counts), strict=True):
        mask = weight.storage.mask
        full = torch.zeros_like(mask)
        full[mask] = flips.to(mask.device)
        factors: list[Tensor] = list(weight.factors)
        signed = weight.parametrization.signed  # −θ is (m, −w), and in the plain masked form −θ itself
        factors[signed] = factors[signed].where(~weight.storage.pack(full), -factors[signed])
        weight.set_factors(factors)
    return module


def _parameters(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters by name; one that has several names appears once."""
    own = dict(module.named_parameters(remove_duplicate=False))
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name in names:
        if name not in own:
            raise SignInError(f"`names`: the module has no parameter {name!r}. It has: {', '.join(own)}.")
        found.setdefault(id(own[name]), (name, own[name]))
    return dict(found.values())


def _read(argument: str, source: Source | None, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        called = f"`{argument}`"
        tensors, _ = plain_weights(source, called)
    else:
        called = f"`{argument}` {source}"
        tensors = read_weights(source).tensors
        if holds_only_masks(tensors):
            raise SignInError(f"{called} holds only masks, no signs or magnitudes. Use a checkpoint of that run.")
    found = {}
    for name, key in match_names(parameters, tensors, called).items():
        found[name] = fit_shape(tensors[key], name, parameters[name].shape, called).to(parameters[name].device)
        if not found[name].isfinite().all():
            raise SignInError(f"{called} has values of {name} that are not finite. Use an earlier checkpoint.")
    return found


def _joined(own: Tensor, signs: Tensor | None, magnitudes: Tensor | None) -> Tensor:
    sign, magnitude = own.sign(), own.abs()
    # Compared with 0 in the source's dtype: a magnitude that rounds to 0 in the module's dtype still counts as given.
    if signs is not None:
        sign = signs.sign().to(own.dtype).where(signs != 0, sign)
    if magnitudes is not None:
        magnitude = magnitudes.abs().to(own.dtype).where(magnitudes != 0, magnitude)
    return sign * magnitude
