"""Which weights of a module are made sparse: glob patterns on plain names, and the special cases."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from lightning_signin.core.kinds import axes_of, layout_in
from lightning_signin.core.layout import PLAIN, Layout
from lightning_signin.core.matrices import dense_matrices, layers_of, own_parameters
from lightning_signin.core.sharded import SHARD_AFTER, is_sharded
from lightning_signin.core.torch_internals import registered_parameters
from lightning_signin.errors import NothingToSparsifyError, SignInError, some, warn

Owners = list[tuple[nn.Module, str]]
Users = dict[str, tuple[nn.Module, str]]
_TYPE = "type:"
_MUCH = 0.2  # if this share of the matrix entries stays dense and the user did not ask for it, a warning says so
_MAKE_KNOWN = "make a layer of your own known with `lightning_signin.add_kind(MyLayer, weight='io')`"


def select_weights(
    module: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> dict[str, Owners]:
    """Choose the weights to make sparse.

    Args:
        module: Any module.
        include: Glob patterns on the plain names of all parameters of two or more dimensions (norms and biases stay
            dense), or ``"type:Conv2d"``, a glob pattern on the name of a layer's class or of one of its bases. None
            takes every weight that multiplies activations: the kinds of `lightning_signin.core.kinds.KINDS`.
        exclude: Patterns of the same form; what they match stays dense.

    Returns:
        For each chosen weight its plain name and the (module, attribute) pairs that use it, in model order. A tied
        weight is listed once, if all its users are chosen; otherwise it stays dense, with a warning. Frozen weights
        stay dense, with a warning. A module that is used twice counts once.

    Raises:
        NothingToSparsifyError: If nothing is left.
        SignInError: If a pattern matches nothing, or a chosen weight cannot be made sparse: already
            parametrized or pruned, scripted, not materialized, or sharded.
    """
    candidates = _candidates(module)
    chosen = _match(module, include, exclude, candidates)
    users: dict[int, Users] = {}  # of each parameter, in model order
    for name, (owner, attribute) in candidates.items():
        users.setdefault(id(own_parameters(owner).get(attribute, owner)), {})[name] = (owner, attribute)
    selected: dict[str, Owners] = {}
    frozen: list[str] = []
    named = [n for n, (owner, _) in candidates.items() if any(_matches(n, owner, pattern) for pattern in exclude or ())]
    for name, (owner, attribute) in candidates.items():
        if name not in chosen:
            continue
        parameter = _check_can_be_sparse(owner, attribute, name)
        tied = users[id(parameter)]
        if outside := [other for other in tied if other not in chosen]:
            warn(f"{name} is tied to {', '.join(outside)}, which is not selected: it stays dense.")
            named.append(name)
        elif not parameter.requires_grad:
            frozen.append(name)
        elif name == next(iter(tied)):
            selected[name] = list(tied.values())
    if frozen:
        are, stay = ("is", "it stays") if len(frozen) == 1 else ("are", "they stay")
        warn(f"{some(frozen)} {are} frozen (requires_grad=False): {stay} dense.")
    if not selected:
        thaw = f" {some(frozen)} {are} frozen: unfreeze before the fit what is to be sparse." if frozen else ""
        raise NothingToSparsifyError(
            "Nothing to sparsify: the model has no trainable weight of a known kind that `include` and `exclude` "
            f"leave.{thaw} Check both, name other weights in `include`, e.g. include=['embedding.weight'], or "
            f"{_MAKE_KNOWN}."
        )
    if include is None:
        _say_dense(module, [*selected, *frozen, *named])
    return selected


def layout_of(owners: Owners) -> Layout:
    """How a weight is stored: by the first of its users that is of a known kind, else (outputs, inputs, kernel…)."""
    for owner, attribute in owners:
        layout = layout_in(owner, attribute)
        if layout is not None:
            return layout
    return PLAIN


def check_patterns(argument: str, patterns: Sequence[str] | None) -> list[str] | None:
    """The patterns as a list; a bare string, which would be iterated letter by letter, raises `SignInError`."""
    if isinstance(patterns, str):
        raise SignInError(f"`{argument}` must be a list of glob patterns, got the string {patterns!r}. Write [...].")
    return None if patterns is None else list(patterns)


def _candidates(module: nn.Module) -> Users:
    """All parameters of two or more dimensions, and weights that something has replaced, by plain name."""
    found: Users = {}
    for prefix, owner in layers_of(module):
        for attribute, parameter in own_parameters(owner).items():
            if isinstance(parameter, UninitializedParameter) or parameter.ndim >= 2:
                found[prefix + attribute] = (owner, attribute)
        replaced = [attribute for attribute, value in vars(owner).items() if isinstance(value, Tensor)]
        if is_parametrized(owner):
            replaced += owner.parametrizations  # type: ignore[arg-type]
        for attribute in replaced:
            if axes_of(owner, attribute) is not None:
                found[prefix + attribute] = (owner, attribute)
    order = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return {name: found[name] for name in [*order, *found] if name in found}


def _match(
    module: nn.Module, include: Sequence[str] | None, exclude: Sequence[str] | None, candidates: Users
) -> set[str]:
    chosen: set[str] = set()
    if include is None:
        chosen = {name for name, (owner, attribute) in candidates.items() if _by_default(owner, attribute)}
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in check_patterns(argument, patterns) or ():
            matched = {name for name, (owner, _) in candidates.items() if _matches(name, owner, pattern)}
            if not matched:
                raise SignInError(_no_match(module, argument, pattern, candidates))
            chosen = chosen | matched if argument == "include" else chosen - matched
    return chosen


def _by_default(owner: nn.Module, attribute: str) -> bool:
    # In a scripted layer, how it reads its weights is compiled already.
    return not isinstance(owner, ScriptModule) and axes_of(owner, attribute) is not None


def _matches(name: str, owner: nn.Module, pattern: str) -> bool:
    if not pattern.startswith(_TYPE):
        return fnmatchcase(name, pattern)
    return any(fnmatchcase(cls.__name__, pattern.removeprefix(_TYPE)) for cls in type(owner).__mro__)


def _no_match(module: nn.Module, argument: str, pattern: str, candidates: Users) -> str:
    if pattern.startswith(_TYPE):
        types = ", ".join(dict.fromkeys(type(owner).__name__ for owner, _ in candidates.values()))
        return f"`{argument}` pattern {pattern!r} matches no layer with weights. There are: {types or 'none'}."
    vectors = [name for name, parameter in module.named_parameters() if fnmatchcase(name, pattern)]
    if vectors:
        return (
            f"`{argument}` pattern {pattern!r} matches only {some(vectors)}, of less than two dimensions: norms and "
            "biases stay dense."
        )
    names = ", ".join([*candidates][:5]) or "none, the module has no weights"
    return f"`{argument}` pattern {pattern!r} matches no weight. Names look like: {names}."


def _say_dense(module: nn.Module, known: Sequence[str]) -> None:
    """Warn if much of the module stays dense, apart from weights in ``known``: selected, left out, frozen or tied."""
    entries = dense_matrices(module)
    size = sum(entries.values())
    dense = {name: number for name, number in entries.items() if name not in known}
    if sum(dense.values()) >= _MUCH * size:
        warn(
            f"{100 * sum(dense.values()) / size:.0f} % of the matrix entries stay dense: {some(list(dense))}. Name "
            f"them in `include`, or {_MAKE_KNOWN}; put what should stay dense in `exclude`."
        )


def _check_can_be_sparse(owner: nn.Module, attribute: str, name: str) -> nn.Parameter:
    leave_out = f"Leave it out with exclude=['{name}']."
    if isinstance(owner, ScriptModule):
        raise SignInError(
            f"{name} belongs to a scripted layer, which has compiled how it reads its weight. {leave_out}"
        )
    if is_parametrized(owner):
        own = attribute if is_parametrized(owner, attribute) else next(iter(owner.parametrizations))  # type: ignore[arg-type]
        kind = type(owner.parametrizations[own][0]).__name__  # type: ignore[index]
        which = name if own == attribute else f"The {own} beside {name}"
        raise SignInError(f"{which} is already parametrized ({kind}). Merge or remove that first. {leave_out}")
    parameter = registered_parameters(owner).get(attribute)
    if not isinstance(parameter, nn.Parameter):
        raise SignInError(
            f"{name} is not a parameter of its {type(owner).__name__}: pruning or weight normalization has replaced "
            f"it. Make that permanent first (e.g. torch.nn.utils.prune.remove). {leave_out}"
        )
    if isinstance(parameter, UninitializedParameter):
        raise SignInError(
            f"{name} has no shape yet (a lazy module). Run one batch through the model first. {leave_out}"
        )
    if parameter.is_meta:
        raise SignInError(
            f"{name} has no values yet (the meta device). Build the model without `empty_init`. {leave_out}"
        )
    if is_sharded(parameter):
        raise SignInError(f"{name} is sharded over ranks already. {SHARD_AFTER}")
    return parameter
