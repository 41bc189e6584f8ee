"""Table 3 on two cores, with convolutions and BatchNorm: the package's ResNet-20 on small MNIST images.

ResNet-20 (272 k parameters) on 1,000 of 5,000 MNIST images, averaged to 7×7, 20 epochs, in place of CIFAR-10; random
balanced masks of 90 and 95 %, β = 1. (A first look at scikit-learn's digits found 99 % on held-out images with every
method, so there is nothing to tell apart.) Every run is on the Lightning Trainer with `SignInCallback`: SGD with
momentum 0.9, batch 64, triangular schedule, Frobenius decay 1e-4 and no other, Sign-In with p = 5, T₂ = 0.75, carry.
Each method has its own learning rate for each sparsity, the best of a grid in steps of 2× on 1,000 held-out images (3
seeds; 0.8, 0.05, 0.025 and 0.0125 were added after tests, when optima were at the edge). 30 test seeds on the other
3,000 images, none used for tuning; differences are paired by seed (same start, mask and batches).

Rule, before the run: Sign-In − plain agrees if its 95 % Student interval is above 0.
"""

from functools import partial

from benchmarks.paper import trainer_results
from benchmarks.paper.trainer_runs import Study
from lightning_signin.recipes.models import ResNet20

TITLE = "Table 3 with a ResNet-20 on small images"
PAPER = {0.9: (86.41, 87.83), 0.95: (83.62, 84.74)}  # CIFAR-10: plain, Sign-In
STUDY = Study(
    name="resnet20",
    network=ResNet20,
    side=7,
    epochs=20,
    batch=64,
    classifier={"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "warmup": 0.2},
    callback={"frobenius_decay": 1e-4},
    sparsities=tuple(PAPER),
    methods=("plain", "mw", "signin"),
    rates=(0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8),
    tuning_seeds=range(1000, 1003),
    test_seeds=range(30),
)
run = partial(trainer_results.run, STUDY, "Table 3, ResNet-20", PAPER)
draw = trainer_results.draw
describe = partial(trainer_results.describe, PAPER, "paper, CIFAR-10")
