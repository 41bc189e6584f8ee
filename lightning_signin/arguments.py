"""All arguments of a sparse run: what each is, when it acts, who decides it, and which values are allowed.

`SignInCallback` takes its signature and documentation from here, as do the command line, YAML, the comparison of runs
on resuming and between the levels of iterative pruning, and the arguments that ``prune`` decides itself.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning_signin.core.functional import check_beta
from lightning_signin.core.naming import name_of, shown
from lightning_signin.core.numbers import number, share, whole_number
from lightning_signin.core.selection import check_patterns
from lightning_signin.errors import SignInError
from lightning_signin.export.formats import parse_exports
from lightning_signin.masks.build import check_choice
from lightning_signin.masks.distributions import check_sparsity
from lightning_signin.masks.groups import check_distribution, has_groups_alone
from lightning_signin.masks.scores import Score, parse_score
from lightning_signin.masks.structures import Structure, parse_structure, read_in_base_60
from lightning_signin.parametrizations import PARAMETRIZATIONS, Parametrization, parse_parametrization
from lightning_signin.updates import UPDATES, UpdateRule, parse_update
from lightning_signin.updates.rescale_schedule import RescaleSchedule
from lightning_signin.updates.resolve import check_start

Stage = Literal["start", "training", "log", "end"]
Owner = Literal["fit", "prune", "both"]
_Spread = str | dict[str, float | str | dict[str, float]]
_Pattern = str | int | Structure | dict[str, str | int]


def _argument(default: Any, stage: Stage, owner: Owner = "fit", same: str = "") -> Any:
    """One argument.

    Args:
        default: Its default.
        stage: When it acts: it makes the module sparse, trains it, says what is logged, or acts at the end.
        owner: Who decides it: the user of a fit; iterative pruning by itself; or both, where pruning has an argument
            of the same name.
        same: Where it must be the same for the runs to be one, since it changes weights: on "resume", between "levels".

    Returns:
        The field of `Arguments`, with its stage, owner and sameness as metadata.
    """
    return field(default=default, metadata={"stage": stage, "owner": owner, "same": tuple(same.split())})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    r"""The arguments of a sparse run.

    Args:
        sparsity: Exact fraction of zeros over the selected weights, in [0, 1). Default: 0.9, or as implied by
            ``distribution``.
        mask: Which weights are kept: a name in `masks.SCORES`, an import path, or e.g. ``SNIP(num_batches=10)``.
        distribution: How many weights each layer keeps: "balanced" (the paper's), "erk", "uniform", "global", or a dict
            of glob pattern → sparsity, a name for the rest, or ``{"max_sparsity": s}``. Default: as in the paper of the
            score, or of an update rule that prunes.
        structure: The pattern of the kept weights: "unstructured", "2:4" (any n:m), "2:4-cap" (at most 2 of 4),
            "4x4-block", "constant-fan-in", or a dict of glob pattern → structure. Default: what the update rule needs.
        mask_from: A file to take the whole mask from: a checkpoint, a state dict, masks of other libraries.
        signs_from: A checkpoint to take the signs of the selected weights from; their magnitudes stay.
        magnitudes_from: A checkpoint to take the magnitudes of the selected weights from; their signs stay.
        flip_signs: Share in [0, 1] of the kept weights whose starting sign is flipped, at random (Table 9).
        update: How the mask moves: a name in `updates.UPDATES`, an import path, or e.g. ``RigL(drop_fraction=0.5)``.
        parametrization: How θ is computed from trainable tensors: a name in `parametrizations.PARAMETRIZATIONS`, or
            e.g. ``STR(s_init=-5)``. "plain" is θ itself: the baseline "Random" of the paper's Table 3.
        beta: The scaling β > 0, or a dict of glob pattern on plain names → β.
        rescale_every_n_epochs: p; None never rescales ("m ⊙ w" of Table 14).
        rescale_every_n_steps: In optimizer steps (``trainer.global_step``); needs ``rescale_every_n_epochs=None``.
        rescale_until: T₂: the first epoch without rescales (int), or a fraction of the run (float).
        rescale_momentum: At a rescale, "carry" momentum over to the new factors, "keep" (Listing 1) or "clear" it.
        weight_decay: The optimizer's acts on "theta", as on plain weights, or "factors", m and w (Table 5, ImageNet).
        frobenius_decay: λ ≥ 0: adds the gradient of (λ/2)·‖m ⊙ w‖² (the paper's λ‖m ⊙ w‖² is 2λ here), in place of the
            optimizer's ``weight_decay``: both at once are a warning.
        log_layers: Also log sign flips, density and scaling of every layer.
        warmup_epochs: Log sign flips from the start to the end of this many epochs, and since then (Figure 1).
        sharpness_every_n_epochs: Log the sharpness after every n-th epoch: the largest eigenvalue of the Hessian of the
            training loss in θ, on the mask, within 1e-3 (Figure 4).
        sharpness_batches: Number of training batches to measure it on, the same ones every time.
        sharpness_mode: The network's mode during it: "eval", or "train", with dropout and batch statistics active.
        include: Glob patterns on the names of the weights to make sparse, or on the types of their layers
            ("type:Conv2d"). Default: every weight that multiplies activations, see `lightning_signin.core.kinds`.
        exclude: Patterns of the same form, of weights to leave dense.
        storage: "compact" (factors are vectors of the non-zeros), "dense", or "auto".
        compute: Layers compute with the non-zeros alone ("sparse"), with the whole weight ("dense"), or as is faster
            on the first batch ("auto"). On the CPU, for linear layers and 1-d and 2-d convolutions in compact storage.
        seed: Seed of the random mask; None takes the seed of ``seed_everything``, or 0.
        export: "safetensors", "compressed", or a list of them: at the end of ``fit``, the merged weights are written
            as ``merged`` into the log folder, and each file that a ModelCheckpoint kept is exported next to itself.

    Raises:
        SignInError: For values out of range, unknown names, and arguments that exclude each other.

    Example:
        >>> Arguments(sparsity=90)
        Traceback (most recent call last):
        lightning_signin.SignInError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """

    sparsity: float | None = _argument(None, "start", owner="both", same="resume")
    mask: str | Score = _argument("random", "start", owner="prune", same="resume")
    distribution: _Spread | None = _argument(None, "start", owner="both", same="resume")
    structure: _Pattern | None = _argument(None, "start", owner="both", same="resume")
    mask_from: str | os.PathLike[str] | None = _argument(None, "start", owner="prune", same="resume")
    signs_from: str | os.PathLike[str] | None = _argument(None, "start", owner="prune", same="resume")
    magnitudes_from: str | os.PathLike[str] | None = _argument(None, "start", owner="prune", same="resume")
    flip_signs: float = _argument(0.0, "start", owner="prune", same="resume")
    update: str | UpdateRule | None = _argument(None, "start", owner="prune", same="resume")
    parametrization: str | Parametrization = _argument("sign-in", "start", same="resume levels")
    beta: float | dict[str, float] = _argument(1.0, "start", same="levels")
    rescale_every_n_epochs: int | None = _argument(5, "training", same="levels")
    rescale_every_n_steps: int | None = _argument(None, "training", same="levels")
    rescale_until: int | float = _argument(0.75, "training", same="levels")
    rescale_momentum: Literal["keep", "carry", "clear"] = _argument("carry", "training", same="levels")
    weight_decay: Literal["theta", "factors"] = _argument("theta", "training", same="levels")
    frobenius_decay: float = _argument(0.0, "training", same="levels")
    log_layers: bool = _argument(False, "log")
    warmup_epochs: int | None = _argument(None, "log")
    sharpness_every_n_epochs: int | None = _argument(None, "log")
    sharpness_batches: int = _argument(1, "log")
    sharpness_mode: Literal["eval", "train"] = _argument("eval", "log")
    include: Sequence[str] | None = _argument(None, "start", same="resume levels")
    exclude: Sequence[str] | None = _argument(None, "start", same="resume levels")
    storage: Literal["auto", "compact", "dense"] = _argument("auto", "start", same="resume levels")
    compute: Literal["auto", "dense", "sparse"] = _argument("auto", "start")
    seed: int | None = _argument(None, "start", same="resume")
    export: str | Sequence[str] | None = _argument(None, "end")

    def __post_init__(self) -> None:
        parse_score(self.mask)
        check_distribution(self.sparsity, self.distribution)
        given: Any = self.structure if self.structure is not None else "unstructured"
        by_pattern = isinstance(given, Mapping)
        read = {n: read_in_base_60(s) for n, s in (given if by_pattern else {"*": given}).items()}
        if self.structure is not None:
            self._set("structure", read if by_pattern else read["*"])
        for structure in read.values():
            parse_structure(structure)
        if self.mask_from is not None and any(
            getattr(self, name) != default(name) for name in ("mask", "distribution", "structure")
        ):
            raise SignInError(
                "`mask_from` reads the whole mask from a file: leave out `mask`, `distribution` and `structure`."
            )
        if self.rule is not None:
            check_start(self.rule, self.structure, self.mask != "random" or self.mask_from is not None)
        for name, hint in get_type_hints(type(self)).items():
            if hint is bool or get_origin(hint) is Literal:
                check_choice(name, getattr(self, name), get_args(hint) or (True, False))
        for name in ("include", "exclude"):
            self._set(name, check_patterns(name, getattr(self, name)))
        self._set("export", parse_exports(self.export) or None)
        self._read_numbers()
        assert self.schedule  # it checks the ranges of its three numbers

    def _read_numbers(self) -> None:
        """Make every number a plain one, in its range."""
        if self.sparsity is not None:
            self._set("sparsity", check_sparsity(self.sparsity))
        self._set("flip_signs", share("flip_signs", self.flip_signs, zero=True, hint="Pass the share, e.g. 0.05."))
        by_pattern = isinstance(self.beta, Mapping)
        betas = {n: check_beta(b) for n, b in (self.beta if by_pattern else {"*": self.beta}).items()}  # type: ignore[union-attr]
        self._set("beta", betas if by_pattern else betas["*"])
        self._set(
            "frobenius_decay", number("frobenius_decay", self.frobenius_decay, "[0, inf)", "The paper uses 1e-4.")
        )
        for name in ("rescale_every_n_epochs", "rescale_every_n_steps"):
            if (value := getattr(self, name)) is not None:
                self._set(name, whole_number(name, value, least=None, hint="None is for never."))
        until = "Pass an epoch (int), or a fraction of the run (float)."
        self._set("rescale_until", number("rescale_until", self.rescale_until, hint=until))
        for name in ("warmup_epochs", "sharpness_every_n_epochs", "sharpness_batches"):
            if (value := getattr(self, name)) is not None or name == "sharpness_batches":
                self._set(name, whole_number(name, value))
        if self.seed is not None:
            self._set("seed", whole_number("seed", self.seed, least=None))

    @property
    def form(self) -> Parametrization:
        """How θ is computed from trainable tensors."""
        return parse_parametrization(self.parametrization)

    @property
    def rule(self) -> UpdateRule | None:
        """How the mask moves: as given, or by the parametrization's own rule."""
        update = self.update if self.update is not None else self.form.update
        return None if update is None else parse_update(update)

    @property
    def schedule(self) -> RescaleSchedule:
        """When the factors are rescaled."""
        return RescaleSchedule(self.rescale_every_n_epochs, self.rescale_every_n_steps, self.rescale_until)

    @property
    def sparsity_at_start(self) -> float | None:
        """The sparsity of the first mask, for methods in which it differs from the final one."""
        start = self.rule.start_sparsity if self.rule is not None else None
        from_all = start is None and self.sparsity is None and not has_groups_alone(self.distribution)
        return 0.0 if from_all and self.form.prunes and self.rule is None else start

    @property
    def seed_in_force(self) -> int:
        """The seed, or that of ``seed_everything``, or 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def that_are_same(self, where: Literal["resume", "levels"]) -> dict[str, Any]:
        """The arguments that must be the same for two runs to be one, as plain values with the seed in force.

        Returns:
            The values by the arguments' names.

        Example:
            >>> Arguments(parametrization="plain").that_are_same("levels")["frobenius_decay"]
            0.0
        """
        saved: dict[str, Any] = vars(self) | {"mask": shown(self.mask), "seed": self.seed_in_force}
        saved |= {n: os.fspath(v) for n, v in saved.items() if isinstance(v, os.PathLike)}
        saved |= {"update": name_of(self.rule, UPDATES), "parametrization": name_of(self.form, PARAMETRIZATIONS)}
        structure: Any = self.structure
        by_pattern = isinstance(structure, Mapping)
        saved["structure"] = {n: shown(s) for n, s in structure.items()} if by_pattern else shown(structure)
        return {each.name: saved[each.name] for each in fields(self) if where in each.metadata["same"]}

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def default(name: str) -> Any:
    """The default of an argument."""
    return Arguments.__dataclass_fields__[name].default


def of_stage(stage: Stage) -> list[str]:
    """The names of the arguments that act at a stage."""
    return [each.name for each in fields(Arguments) if each.metadata["stage"] == stage]


def owned_by(*owners: Owner) -> list[str]:
    """The names of the arguments that these decide."""
    return [each.name for each in fields(Arguments) if each.metadata["owner"] in owners]


def described() -> str:
    """The section of the docstring above that says what each argument is."""
    text = str(Arguments.__doc__)
    return text[text.index("Args:") : text.index("Raises:")].rstrip()
