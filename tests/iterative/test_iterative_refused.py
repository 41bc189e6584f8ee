"""What iterative pruning refuses, in which words: arguments, trainers, and weights that cannot be pruned."""

import re

import pytest

from lightning_signin import IterativePruning, SignInCallback
from tests.pruning import Trainers, pruning
from tests.small import Small, loader, seeded, trainer


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 90}, "`sparsity` must be in [0, 1), got 90"),
        ({"prune_rate": 1.0}, "`prune_rate` must be in (0, 1), got 1.0. Pass the share to prune, e.g. 0.2."),
        ({"prune_rate": True}, "`prune_rate` must be a number in (0, 1), got True"),
        ({"rewind": "late"}, "`rewind` must be one of 'lrr', 'wr', 'imp'; got 'late'"),
        ({"rewind": "wr"}, "`rewind_epoch` must be a whole number of at least 1, got None. rewind='wr' needs it"),
        ({"rewind": "wr", "rewind_epoch": 0}, "got 0. rewind='wr' needs it, e.g. rewind_epoch=2."),
        ({"rewind_epoch": 2}, "`rewind_epoch`=2 has no effect with rewind='lrr'. Leave it out."),
        ({"distribution": "even"}, "`distribution` must be one of 'balanced', 'uniform', 'erk', 'global'; got 'even'"),
        ({"distribution": {"*": 0.5}}, "`distribution` must be one of"),
        ({"structure": "5:4"}, "`structure` '5:4' must keep 1 to 4"),
        ({"sign_in": {"mask": "snip"}}, "`sign_in` must not have 'mask': IterativePruning decides it"),
        ({"sign_in": {"sparsity": 0.5}}, "`sign_in` must not have 'sparsity'"),
        ({"sign_in": {"beta": -1}}, "beta"),
        ({"sign_in": {"parametrization": "str"}}, "parametrization='str' makes zeros by itself"),
    ],
    ids=str,
)
def test_bad_argument_is_refused(tmp_path, options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        IterativePruning(tmp_path, **options)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda callbacks: trainer(), "`make_trainer` must build a new Trainer with the callbacks that are passed"),
        (lambda callbacks: trainer(SignInCallback(), callbacks[1], enable_checkpointing=True), "must build a new"),
        (
            lambda callbacks: trainer(SignInCallback(), *callbacks, enable_checkpointing=True),
            "must not add a SignInCallback: every level adds its own. Pass its arguments as sign_in={…}",
        ),
        (
            lambda callbacks: trainer(*callbacks, enable_checkpointing=True, fast_dev_run=True),
            "`fast_dev_run` writes no checkpoints",
        ),
        (
            lambda callbacks: trainer(*callbacks, epochs=1, enable_checkpointing=True),
            "`rewind_epoch`=2 must be an epoch of level 0, which has 1. Lower it, or train longer.",
        ),
        (
            lambda callbacks: trainer(*callbacks, epochs=-1, max_steps=5, enable_checkpointing=True),
            "`rewind_epoch`=2 must be an epoch of level 0, which has 1",
        ),
    ],
)
def test_wrong_trainer_is_refused(tmp_path, make, text):
    run = pruning(tmp_path, rewind="wr", rewind_epoch=2, sign_in={"rescale_until": 1})
    with pytest.raises(ValueError, match=re.escape(text)):
        run.fit(make, seeded(), loader())
    assert not (tmp_path / "level-00.ckpt").exists()


def test_what_the_last_level_does_not_allow_is_said_before_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"`structure` does not fit conv.weight"):
        pruning(tmp_path, structure="2:4", sparsity=0.5).fit(Trainers(), Small(), loader())
    with pytest.raises(ValueError, match="each of 3 layers must keep at least one weight"):
        pruning(tmp_path, sparsity=0.999).fit(Trainers(), Small(), loader())
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_pruned(tmp_path):
    module = seeded(lr=1e30)
    with pytest.raises(ValueError, match=r"weight is not finite at the end of level 0.*lower learning rate"):
        pruning(tmp_path, form="plain", sign_in={"parametrization": "plain"}).fit(Trainers(), module, loader())
