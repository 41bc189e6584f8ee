"""Fits with ``compute="sparse"`` end where dense ones do, and everything around a fit works with it."""

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from lightning_signin.callback import SignInCallback
from lightning_signin.core.weights import sparse_weights
from lightning_signin.updates import GMP, Cosine, Cubic, RigL
from tests.resuming import SaveEverywhere
from tests.small import callback, copies, differing, loader, seeded, trainer

CASES = {
    "static": {},
    "rigl": {"update": RigL(Cosine(4))},
    "gmp": {"update": GMP(Cubic(4)), "parametrization": "plain"},
    "str": {"parametrization": "str", "sparsity": None},
    "sharpness": {"sharpness_every_n_epochs": 2},
}
FITS = {
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "double": {"precision": "64-true"},
    "bfloat16": {"precision": "bf16-mixed"},
}
AVERAGED = {"ema": lambda: EMAWeightAveraging(decay=0.8), "swa": lambda: StochasticWeightAveraging(0.01, 2)}


def fitted(*more, compute, options=None, **settings):
    module, sign_in = seeded(), callback(compute=compute, **(options or {}))
    run = trainer(sign_in, *more, **settings)
    run.fit(module, loader())
    return module, run


def check_alike(**made):
    """Equal up to rounding, with equal masks."""
    ended = [copies(fitted(compute=compute, **made)[0]) for compute in ("sparse", "dense")]
    for name, value in ended[0].items():
        assert torch.equal(value == 0, ended[1][name] == 0), name
        torch.testing.assert_close(value, ended[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_fit_ends_where_the_dense_one_does(case):
    check_alike(options=CASES[case])


@pytest.mark.parametrize("case", FITS)
def test_settings_of_the_trainer(case):
    if case == "bfloat16":
        with pytest.warns(UserWarning, match="runs with its whole weight"):
            fitted(compute="sparse", **FITS[case])
    else:
        check_alike(**FITS[case])


@pytest.mark.parametrize("case", AVERAGED)
def test_averaging(case):
    sparse, dense = (copies(fitted(AVERAGED[case](), compute=compute)[0]) for compute in ("sparse", "dense"))
    for name, value in sparse.items():
        torch.testing.assert_close(value, dense[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["static", "rigl", "gmp"])
def test_resume_is_exact(case, tmp_path):
    whole, _ = fitted(SaveEverywhere(tmp_path), compute="sparse", options=CASES[case])
    for checkpoint in ("step5.ckpt", "epoch1.ckpt"):
        module = seeded()
        trainer(callback(compute="sparse", **CASES[case])).fit(module, loader(), ckpt_path=tmp_path / checkpoint)
        assert differing(copies(module), copies(whole)) == []


def test_resume_takes_the_saved_choices(tmp_path):
    class Seen(SaveEverywhere):
        def on_train_batch_end(self, trainer, module, *_):
            self.found = {n: w.parametrization.choice.taken for n, w in sparse_weights(module).items()}
            super().on_train_batch_end(trainer)

    first = Seen(tmp_path)
    fitted(first, compute="sparse")
    assert set(first.found.values()) == {"sparse"}
    for compute in ("sparse", "dense"):
        again = Seen(tmp_path)
        trainer(callback(compute=compute), again).fit(seeded(), loader(), ckpt_path=tmp_path / "epoch1.ckpt")
        assert set(again.found.values()) == {compute}


def test_one_line_says_how_many_layers(caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch"):
        fitted(compute="sparse", epochs=1)
        assert "SignIn: 3 of 3 sparse weights are computed on their non-zeros." in caplog.text
        caplog.clear()
        fitted(compute="auto", epochs=1)  # all layers are small
        assert "non-zeros" not in caplog.text


def test_argument_is_checked():
    with pytest.raises(ValueError, match="`compute` must be one of"):
        SignInCallback(compute="fast")
