"""`SignInCallback` and its arguments; `FitHooks` implements its behaviour."""

import os
from collections.abc import Sequence
from typing import Literal

from lightning_signin.callback.exporting import parse_exports
from lightning_signin.callback.hooks import FitHooks
from lightning_signin.callback.schedule import RescaleSchedule
from lightning_signin.callback.start import Start
from lightning_signin.callback.training import TrainingOptions
from lightning_signin.masks.scores import Score
from lightning_signin.masks.structures import Structure
from lightning_signin.parametrizations import Parametrization
from lightning_signin.updates import UpdateRule


class SignInCallback(FitHooks):
    r"""Trains any LightningModule as a sparse network with Sign-In (arXiv:2504.12801, Algorithm 1).

    At the start of ``fit`` the selected weights are masked and each becomes a product m ⊙ w; every p epochs m² − w² is
    reset to β; at the end m ⊙ w is merged. ``state_dict`` is plain at any time. A module that ``configure_model`` has
    made sparse keeps its masks and factors, sharded by FSDP2 or not.

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
        rescale_every_n_steps: Counts optimizer steps (``trainer.global_step``) instead; needs
            ``rescale_every_n_epochs=None``.
        rescale_until: T₂: the first epoch without rescales (int), or a fraction of the run (float).
        rescale_momentum: What a rescale does to the optimizer's momentum: "carry" it over to the new factors, "keep"
            it (Listing 1; works with every optimizer without copies of the parameters), or "clear" it.
        frobenius_decay: λ ≥ 0: adds the gradient of (λ/2)·‖m ⊙ w‖², so that λ is comparable to ``weight_decay`` on θ.
            The paper's loss term λ‖m ⊙ w‖² is 2λ here. Set the optimizer's ``weight_decay`` of these weights to 0.
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
        seed: Seed of the random mask; None takes the seed of ``seed_everything``, or 0.
        export: "safetensors", "compressed", or a list of them: at the end of ``fit``, the merged weights are written
            as ``merged`` into the log folder, and each file that a ModelCheckpoint kept is exported next to itself.

    Raises:
        SignInError: For values out of range and unknown names, here; for what the model or the run does not allow, at
            the start of ``fit``.

    Example:
        >>> SignInCallback(mask="snip", update="rigl").start.rule.drop_fraction
        0.3
        >>> SignInCallback(sparsity=90)
        Traceback (most recent call last):
        lightning_signin.SignInError: `sparsity` must be in [0, 1), got 90. Pass the fraction of zeros, e.g. 0.9.
    """

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        mask: str | Score = "random",
        distribution: str | dict[str, float | str | dict[str, float]] | None = None,
        structure: str | int | Structure | dict[str, str | int] | None = None,
        mask_from: str | os.PathLike | None = None,
        signs_from: str | os.PathLike | None = None,
        magnitudes_from: str | os.PathLike | None = None,
        flip_signs: float = 0.0,
        update: str | UpdateRule | None = None,
        parametrization: str | Parametrization = "sign-in",
        beta: float | dict[str, float] = 1.0,
        rescale_every_n_epochs: int | None = 5,
        rescale_every_n_steps: int | None = None,
        rescale_until: int | float = 0.75,
        rescale_momentum: Literal["keep", "carry", "clear"] = "carry",
        frobenius_decay: float = 0.0,
        log_layers: bool = False,
        warmup_epochs: int | None = None,
        sharpness_every_n_epochs: int | None = None,
        sharpness_batches: int = 1,
        sharpness_mode: Literal["eval", "train"] = "eval",
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        storage: Literal["auto", "compact", "dense"] = "auto",
        seed: int | None = None,
        export: str | Sequence[str] | None = None,
    ) -> None:
        start = Start(
            sparsity=sparsity,
            mask=mask,
            distribution=distribution,
            structure=structure,
            mask_from=mask_from,
            signs_from=signs_from,
            magnitudes_from=magnitudes_from,
            flip_signs=flip_signs,
            update=update,
            parametrization=parametrization,
            beta=beta,
            include=include,
            exclude=exclude,
            storage=storage,
            seed=seed,
        )
        options = TrainingOptions(
            schedule=RescaleSchedule(rescale_every_n_epochs, rescale_every_n_steps, rescale_until),
            rescale_momentum=rescale_momentum,
            frobenius_decay=frobenius_decay,
            log_layers=log_layers,
            warmup_epochs=warmup_epochs,
            sharpness_every_n_epochs=sharpness_every_n_epochs,
            sharpness_batches=sharpness_batches,
            sharpness_mode=sharpness_mode,
        )
        super().__init__(start, options, parse_exports(export))
