"""A loss that becomes NaN: the mask stays, and the weight is named."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_signin import masks
from lightning_signin.parametrizations import STR
from lightning_signin.updates import ACDC, GMP, MEST, SET, Constant, Cosine, Cubic, OneShot, RigL, SRigL, Stages
from lightning_signin.weightfiles.factor_state import saved_masks
from tests.small import Small, callback, loader, seeded, trainer


class Lost(Small):
    """The loss of one step is NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 6 else loss


class Counts(Callback):
    def __init__(self):
        self.masks = []

    def on_train_batch_end(self, trainer, module, *_):
        self.masks.append(masks(module))


@pytest.mark.parametrize(
    ("rule", "step"),
    [
        (SET(Constant(4)), 8),
        (RigL(Cosine(4)), 8),
        (RigL(Cosine(3)), 7),
        (SRigL(Cosine(4)), 8),
        (MEST(Stages(4)), 8),
        (GMP(Cubic(4)), 8),
        (ACDC(), 8),
        (OneShot(), 30),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.* is not finite")
def test_lost_loss_ends_the_run_before_the_mask_follows_it(rule, step):
    seeded()
    module, counts = Lost(), Counts()
    with pytest.raises(ValueError, match=rf"conv.weight is not finite at step {step}, where the mask changes: the tr"):
        trainer(sign_in := callback(update=rule), counts).fit(module, loader())
    saved = saved_masks(sign_in.state_dict())
    assert all(torch.equal(mask, saved[name]) for name, mask in counts.masks[6].items())
    assert type(module.fc1) is torch.nn.Linear


@pytest.mark.parametrize(
    "options", [{}, {"storage": "dense"}, {"mask": "magnitude"}, {"parametrization": STR()}], ids=str
)
def test_lost_loss_is_named_where_the_mask_stays(options):
    seeded()
    module, counts = Lost(), Counts()
    with pytest.warns(UserWarning, match="conv.weight is not finite at the end of epoch 0: the training loss or a "):
        trainer(callback(**options), counts).fit(module, loader())
    assert len({str({n: m.tolist() for n, m in masks.items()}) for masks in counts.masks}) == 1
    assert type(module.fc1) is torch.nn.Linear
