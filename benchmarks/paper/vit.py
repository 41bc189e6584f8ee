"""Table 10 on two cores: a small vision transformer on random masks, plain, m ⊙ w and Sign-In, on small images.

timm's VisionTransformer with patches of 7×7 on 28×28 images, width 64, 4 blocks of 4 heads (205 k parameters), 20
epochs on 1,000 of 5,000 MNIST images, in place of a DeiT-small on ImageNet; random balanced masks of 50 %, as in the
paper, and 90 %. Every run is on the Lightning Trainer with `SignInCallback`, with the values of Tables 4 and 5 for
DeiT: AdamW with decay 0.1 of all parameters, m and w among them, no Frobenius decay, triangular schedule, label
smoothing 0.1, β = 1, T₂ = 0.75 of the run; p = 5, carry, peak after 10 % of the steps and batch 64, where the paper is
silent or too large. Each method has its own learning rate for each sparsity, the best of a grid in steps of 2× on 1,000
held-out images (3 seeds); the paper's 0.001 is too small for so short a run, and the rates above 0.008 were added after
first tests, when optima were at the edge. 30 test seeds on the other 3,000 images, none used for tuning; differences
are paired by seed (same start, mask and batches).

Rule, before the run: Sign-In − plain agrees if its 95 % Student interval is above 0; the paper has no number at 90 %.
"""

from functools import partial

from torch import nn

from benchmarks.paper import trainer_results
from benchmarks.paper.trainer_runs import Study

TITLE = "Table 10: a small vision transformer"
PAPER = {0.5: (69.31, 70.62)}  # DeiT-small, ImageNet: plain, Sign-In


def small_vit() -> nn.Module:
    """The transformer, untrained."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=64, depth=4, num_heads=4)


STUDY = Study(
    name="vit",
    network=small_vit,
    side=28,
    epochs=20,
    batch=64,
    classifier={"optimizer": "adamw", "weight_decay": 0.1, "warmup": 0.1, "label_smoothing": 0.1},
    callback={"weight_decay": "factors"},  # as the paper decays m and w of its transformer (Table 5)
    sparsities=(0.5, 0.9),
    methods=("plain", "mw", "signin"),
    rates=(0.008, 0.016, 0.032, 0.064, 0.128, 0.256),
    tuning_seeds=range(1000, 1003),
    test_seeds=range(30),
)
run = partial(trainer_results.run, STUDY, "Table 10, small ViT", PAPER)
draw = trainer_results.draw
describe = partial(trainer_results.describe, PAPER, "paper, DeiT-small")
