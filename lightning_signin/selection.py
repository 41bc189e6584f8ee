"""Which weights of a module are made sparse: glob patterns on plain names, and what happens to the odd cases."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.jit import ScriptModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from lightning_signin.sharded import SHARD_AFTER, is_sharded
from lightning_signin.warn import warn

Owners = list[tuple[nn.Module, str]]
Users = dict[str, tuple[nn.Module, str]]


def select_weights(
    module: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, Owners]:
    """Choose the weights to make sparse.

    Args:
        module: Any module.
        include: Glob patterns on plain names; None takes every Conv and Linear weight. A pattern that matches Conv or
            Linear weights chooses just those; one that matches none of them chooses the other parameters of two or
            more dimensions that it matches (an embedding, an ``in_proj_weight``).
        exclude: Glob patterns; what they match stays dense.

    Returns:
        For each chosen weight its plain name and the (module, attribute) pairs that use it, in model order. A tied
        weight is listed once, if all its users are chosen; otherwise it stays dense, with a warning. Frozen weights
        stay dense, with a warning. A module that is used twice counts once.

    Raises:
        ValueError: If a pattern matches nothing, nothing is left, or a chosen weight cannot be made sparse: already
            parametrized or pruned, not materialized, sharded, or of a recurrent layer, which keeps second references.
    """
    by_default, by_name = _candidates(module)
    chosen = _match(include, exclude, by_default, by_name)
    in_model_order = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    candidates = by_default | by_name
    candidates = {name: candidates[name] for name in [*in_model_order, *candidates] if name in candidates}
    users: dict[int, Users] = {}  # of each parameter, in model order
    for name, (owner, attribute) in candidates.items():
        users.setdefault(id(owner._parameters.get(attribute, owner)), {})[name] = (owner, attribute)
    selected: dict[str, Owners] = {}
    for name, (owner, attribute) in candidates.items():
        if name not in chosen:
            continue
        parameter = _check_can_be_sparse(owner, attribute, name)
        tied = users[id(parameter)]
        if outside := [other for other in tied if other not in chosen]:
            warn(f"{name} is tied to {', '.join(outside)}, which is not selected: it stays dense.")
        elif not parameter.requires_grad:
            warn(f"{name} is frozen (requires_grad=False): it stays dense.")
        elif name == next(iter(tied)):
            selected[name] = list(tied.values())
    if not selected:
        raise ValueError(
            "Nothing to sparsify: the model has no trainable Conv or Linear weight that `include` and `exclude` leave. "
            "Check both, and name other weights in `include`, e.g. include=['embedding.weight']."
        )
    return selected


def check_patterns(argument: str, patterns: Sequence[str] | None) -> list[str] | None:
    """The patterns as a list; a string alone, which would be read letter by letter, is a `ValueError`."""
    if isinstance(patterns, str):
        raise ValueError(f"`{argument}` must be a list of glob patterns, got the string {patterns!r}. Write [...].")
    return None if patterns is None else list(patterns)


def _candidates(module: nn.Module) -> tuple[Users, Users]:
    """The Conv and Linear weights, and the other parameters of two or more dimensions, by plain name."""
    by_default: Users = {}
    by_name: Users = {}
    for prefix, owner in module.named_modules():
        if isinstance(owner, ParametrizationList):
            continue  # its parameters go by the name of the weight that they stand for
        if isinstance(owner, ScriptModule):
            continue  # TorchScript has compiled how its layers read their weights
        if isinstance(owner, nn.Linear | _ConvNd):
            by_default[_join(prefix, "weight")] = (owner, "weight")
        for attribute, parameter in owner._parameters.items():
            lazy = isinstance(parameter, UninitializedParameter)
            name = _join(prefix, attribute)
            if parameter is not None and name not in by_default and (lazy or parameter.ndim >= 2):
                by_name[name] = (owner, attribute)
    return by_default, by_name


def _match(include: Sequence[str] | None, exclude: Sequence[str] | None, by_default: Users, by_name: Users) -> set[str]:
    chosen = set(by_default) if include is None else set()
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in check_patterns(argument, patterns) or ():
            matched = {name for name in by_default if fnmatchcase(name, pattern)}
            matched = matched or {name for name in by_name if fnmatchcase(name, pattern)}
            if not matched:
                some = ", ".join([*by_default, *by_name][:5]) or "none, the module has no weights"
                raise ValueError(f"`{argument}` pattern {pattern!r} matches no weight. Names look like: {some}.")
            chosen = chosen | matched if argument == "include" else chosen - matched
    return chosen


def _join(prefix: str, attribute: str) -> str:
    return f"{prefix}.{attribute}" if prefix else attribute


def _check_can_be_sparse(owner: nn.Module, attribute: str, name: str) -> nn.Parameter:
    leave_out = f"Leave it out with exclude=['{name}']."
    if is_parametrized(owner):
        kind = type(next(iter(owner.parametrizations.values()))[0]).__name__  # type: ignore[index, operator]
        raise ValueError(f"{name} is already parametrized ({kind}). Merge or remove that first. {leave_out}")
    parameter = owner._parameters.get(attribute)
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(
            f"{name} is not a parameter of its {type(owner).__name__}: pruning or weight normalization has replaced "
            f"it. Make that permanent first (e.g. torch.nn.utils.prune.remove). {leave_out}"
        )
    if isinstance(parameter, UninitializedParameter):
        raise ValueError(f"{name} has no shape yet (a lazy module). Run one batch through the model first. {leave_out}")
    if parameter.is_meta:
        raise ValueError(
            f"{name} has no values yet (the meta device). Build the model without `empty_init`. {leave_out}"
        )
    if is_sharded(parameter):
        raise ValueError(f"{name} is sharded over ranks already. {SHARD_AFTER}")
    if isinstance(owner, nn.RNNBase):
        raise ValueError(f"{name} belongs to a recurrent layer, which is not supported yet. {leave_out}")
    return parameter
