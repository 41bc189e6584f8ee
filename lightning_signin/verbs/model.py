"""The verbs on a whole module: `sparsify`, `rescale_`, `merge_`; and views of a sparse module's masks and weights."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_signin.core.compute import COMPUTE, Compute, choice_of
from lightning_signin.core.functional import check_beta
from lightning_signin.core.masked import Masked, SignIn
from lightning_signin.core.old_optimizers import note_merged
from lightning_signin.core.optimizer_rescale import MOMENTUM, StateAtRescale
from lightning_signin.core.plain_parameter import set_aside
from lightning_signin.core.plain_view import show_plain
from lightning_signin.core.replaced_layers import make_sparse
from lightning_signin.core.selection import layout_of, select_weights
from lightning_signin.core.sharded import EXPORT, is_sharded, sharded_like, whole
from lightning_signin.core.sparse_layer import KINDS
from lightning_signin.core.state_dict import uninstall_plain_state
from lightning_signin.core.storage import make_storage
from lightning_signin.core.torch_internals import registered_parameters
from lightning_signin.core.weights import sign_in_weights, sparse_weights
from lightning_signin.core.wrappers import replica, unwrapped
from lightning_signin.errors import SignInError
from lightning_signin.masks.build import StructureOf, build_masks, check_choice
from lightning_signin.masks.groups import Distribution, has_groups_alone
from lightning_signin.masks.patterns import by_pattern
from lightning_signin.masks.scores import Score
from lightning_signin.objective.training_data import Objective
from lightning_signin.parametrizations import Parametrization, parse_parametrization
from lightning_signin.randomness.generators import untouched
from lightning_signin.units.connected import check_connected


def sparsify(
    module: nn.Module,
    *,
    sparsity: float | None = None,
    mask: str | Score | Mapping[str, Tensor] = "random",
    distribution: Distribution | None = None,
    structure: StructureOf = "unstructured",
    beta: float | Mapping[str, float] = 1.0,
    parametrization: str | Parametrization = "sign-in",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    storage: str = "auto",
    compute: str = "auto",
    seed: int = 0,
    data: Objective | None = None,
) -> nn.Module:
    """Mask the weights of a module, and make each a product m ⊙ w, in place.

    The parameters become the factors; from outside (``state_dict``, ``load_state_dict``) the module stays plain. Build
    optimizers inside `plain_view`, or from ``module.parameters()`` if one group is enough.

    Args:
        module: Any module, on any device.
        sparsity: Fraction of zeros over the selected weights, in [0, 1). Default: 0.9, or 0 if the parametrization
            makes its zeros itself, or as given by groups in ``distribution``.
        mask: A score: its name in `lightning_signin.masks.SCORES`, its import path, or an object, e.g.
            ``SNIP(num_batches=10)``; or masks by plain name: bool tensors of the weights' shapes, with which
            ``sparsity``, ``distribution``, ``structure`` and ``seed`` have no effect.
        distribution: How the kept weights are spread over layers; see `build_masks`.
        structure: The pattern in which weights are kept; see `parse_structure`.
        beta: The scaling β, or a dict of glob pattern → β (Theorem 5.2 needs two).
        parametrization: How θ is computed from trainable tensors: "sign-in" (m ⊙ w), "plain" (θ itself: the plain
            masked network), "str", "powerprop", "spred", "pilot", or an object, e.g. ``STR(s_init=-10)``.
        include: Glob patterns on the names of the weights to make sparse, or on the types of their layers
            ("type:Conv2d"). None selects every weight that multiplies activations: see `lightning_signin.core.kinds`.
        exclude: Patterns of the same form, of weights to leave dense.
        storage: "compact", "dense" or "auto" (compact for layers of density ≤ 0.5, except on XLA).
        compute: How linear layers and 1-d and 2-d convolutions use a weight in compact storage, on the CPU: with its
            non-zeros alone ("sparse"), forward and backward; with the whole weight ("dense"); or ("auto") whichever is
            faster in the first training forward of each larger layer, where both are timed: see `compute_table`.
        seed: Seed of the random mask.
        data: Loss and batches, for scores that train or run the module. If given, the mask is checked for layer
            collapse: whether it cuts the network from input to output.

    Returns:
        The same module. Scoring leaves weights, buffers and process-wide random generators as they were.

    Raises:
        SignInError: For values out of range, unknown names, patterns that match nothing, masks that do not fit or that
            cut the network, kept values that are not finite, or a module that is sparse already. Nothing is changed
            then.

    Example:
        >>> net = sparsify(nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10)), sparsity=0.8)
        >>> sum(int(mask.sum()) for mask in masks(net).values())
        300
    """
    check_choice("storage", storage, ("auto", "compact", "dense"))
    check_choice("compute", compute, COMPUTE)
    if compute == "sparse" and storage == "dense":
        raise SignInError("compute='sparse' needs the non-zeros alone. Pass storage='compact' or 'auto'.")
    chosen = parse_parametrization(parametrization)
    if sparse_weights(module):
        raise SignInError("The module is sparse already. Call `merge_` first to make it plain again.")
    if replica(module) is not None:
        raise SignInError(
            "The module is wrapped in DistributedDataParallel, which averages the gradients of the parameters that it "
            "found, and `sparsify` replaces them. Call `sparsify` before the module is wrapped."
        )
    outer, module = module, unwrapped(module)
    selected = select_weights(module, include, exclude)
    weights = {name: registered_parameters(owners[0][0])[owners[0][1]] for name, owners in selected.items()}
    layouts = {name: layout_of(owners) for name, owners in selected.items()}
    groups = has_groups_alone(distribution)
    with untouched():
        if not isinstance(mask, Mapping):
            mask = build_masks(
                weights,  # type: ignore[arg-type]
                sparsity=0.0 if sparsity is None and chosen.prunes and not groups else sparsity,
                mask=mask,
                distribution=distribution,
                structure=structure,
                seed=seed,
                module=module,
                data=data,
                layouts=layouts,
            )
        _check_masks(mask, {name: weight.shape for name, weight in weights.items()})  # type: ignore[union-attr]
        if data is not None and data.shows_network:
            check_connected(mask, partial(data.network, module, list(selected)))
    betas = {name: check_beta(value) for name, value in by_pattern("beta", beta, list(selected)).items()}
    built: dict[str, Masked] = {}
    for name, weight in weights.items():
        assert weight is not None
        built[name] = chosen.build(make_storage(storage, mask[name].to(weight.device)), betas[name])
        if (reason := built[name].refusal(name, weight)) is not None:
            raise SignInError(reason)
    of_all = Compute(compute, len(built))
    for name, owners in selected.items():
        built[name].layout, built[name].name = layouts[name], name
        can_run = all(type(owner) in KINDS for owner, _ in owners)
        built[name].choice = choice_of(of_all, can_run, built[name].shape.numel())
        _parametrize(owners, built[name])
    return outer


@torch.no_grad()
def rescale_(module: nn.Module, *, optimizers: Iterable[Optimizer] = (), momentum: str = "keep") -> nn.Module:
    """Reset every product m ⊙ w to m² − w² = β without changing θ, in place (Algorithm 1, Appendix C).

    Args:
        module: A module after `sparsify`; its plain masked weights are left alone.
        optimizers: The optimizers whose state of the factors changes along; needed unless ``momentum`` is "keep".
        momentum: What happens to the optimizers' momentum: "keep" leaves it as it is, as the paper's Listing 1 does;
            "carry" converts it, and squared-gradient averages, to what they would be had the past gradients been taken
            at the new factors; "clear" sets it to zero.

    Returns:
        The same module. Entries that are no longer finite cannot be rescaled: their factors stay as they are.

    Raises:
        SignInError: If ``momentum`` is unknown, if "carry" or "clear" has no rule for an optimizer's state, or if an
            optimizer holds copies of the factors, which would undo the rescale.

    Example:
        >>> net = sparsify(nn.Linear(10, 10), sparsity=0.5)
        >>> before = net.weight.clone()
        >>> with torch.no_grad():
        ...     _ = [parameter.mul_(1.5) for parameter in net.parametrizations.weight.parameters()]
        >>> torch.allclose(rescale_(net).weight, 2.25 * before)
        True
    """
    check_choice("momentum", momentum, MOMENTUM)
    weights = sign_in_weights(module).values()
    state = StateAtRescale(momentum, optimizers, weights)
    for weight in weights:
        sign_in = weight.parametrization
        assert isinstance(sign_in, SignIn)
        renewed = [
            sharded_like(v, f)
            for v, f in zip(SignIn.split(sign_in, whole(weight.inner())), weight.factors, strict=True)
        ]
        lost = renewed[1].isnan()  # also for θ = ∞, which gives (∞, NaN); raising would make accelerators synchronize
        renewed = [own.where(lost, new) for own, new in zip(weight.factors, renewed, strict=True)]
        state.change_(weight.factors, renewed)
        # copy_ keeps the parameter objects: `module.weight = …` would call set_(), which breaks DDP.
        weight.set_factors(renewed)
    return module


def merge_(module: nn.Module) -> nn.Module:
    """Make the module plain again, with the masked effective weights as its parameters, in place.

    Outputs stay the same, bit for bit, or up to rounding where layers ran on their non-zeros. Parameters are the
    objects that they were before `sparsify`, in their order, and tied weights are one parameter again. Optimizers that
    trained the factors train the parameters from now on.

    Returns:
        The same module.

    Raises:
        SignInError: If ``fully_shard`` has sharded the module; the message has the command that merges its checkpoint.

    Example:
        >>> net = merge_(sparsify(nn.Linear(10, 10), sparsity=0.5))
        >>> [name for name, _ in net.named_parameters()], int((net.weight != 0).sum())
        (['weight', 'bias'], 50)
    """
    weights = sparse_weights(module).values()
    if any(is_sharded(weight.factors[0]) for weight in weights):
        raise SignInError(f"The module is sharded over ranks, and cannot be merged in place. {EXPORT}")
    layers, _ = show_plain(module)
    for layer in layers:
        uninstall_plain_state(layer.owner)
    note_merged(weights)
    return module


def masks(module: nn.Module) -> dict[str, Tensor]:
    """The mask of every sparse weight by plain name: bool, of the weight's shape, True keeps."""
    return {name: weight.storage.mask.clone() for name, weight in sparse_weights(module).items()}


def effective_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every masked effective weight θ by plain name, of the weight's shape."""
    return {name: weight.effective() for name, weight in sparse_weights(module).items()}


def _parametrize(owners: list[tuple[nn.Module, str]], parametrization: Masked) -> None:
    first, attribute = owners[0]
    plain: Any = registered_parameters(first)[attribute]
    # The strides of a meta copy, which never overlap.
    parametrization.stride = torch.empty_like(plain, device="meta").stride()
    holder = None  # tied weights share one, so that there is one set of factors
    for owner, name in owners:
        holder = make_sparse(owner, name, parametrization, holder)
    vars(parametrization)["plain_parameter"] = plain  # not registered: it is not trained now
    set_aside(plain, holder)  # type: ignore[arg-type]


def _check_masks(masks: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    for name in [*shapes, *masks]:
        if name not in masks or name not in shapes:
            where = "has none" if name not in masks else "is not a selected weight"
            raise SignInError(f"`mask` must have one mask for each selected weight, and {name} {where}.")
        if masks[name].dtype != torch.bool or masks[name].shape != shapes[name] or not masks[name].any():
            raise SignInError(
                f"`mask` of {name} must be a bool tensor of shape {tuple(shapes[name])} that keeps at least one, got "
                f"{masks[name].dtype}, shape {tuple(masks[name].shape)}, {int(masks[name].sum())} kept."
            )
