"""Masks that exist before a fit starts: those of the last fit, and those of a checkpoint."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_signin.errors import SignInError


def check_known(known: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Raise `SignInError` if the masks of the last fit do not match the weights that are selected now."""
    before = {name: mask.shape for name, mask in known.items()}
    for name in [*shapes, *known]:
        now, then = (tuple(found[name]) if name in found else None for found in (shapes, before))
        if now != then:
            what = "was not sparse then" if then is None else f"had the shape {then} then"
            what = f"{what}, and has {now} now" if now is not None else "is not selected now"
            raise SignInError(
                f"This SignInCallback reuses its masks from the last fit of this module, but {name} {what}. Use a "
                "new SignInCallback: it draws a new mask, or takes one with `mask_from`. To keep the old masks, "
                f"leave the new weights dense with exclude=['{name}'] in both fits."
            )


def to_be_loaded(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Minimal placeholder masks: the checkpoint's masks replace them, so nothing is scored again."""
    masks = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for mask in masks.values():
        mask.view(-1)[0] = True
    return masks
