"""Interrupted and resumed equals uninterrupted, bit for bit, for every rule and parametrization that moves."""

import pytest
import torch

from lightning_signin.parametrizations import STR, PILoT, Powerprop, Spred
from lightning_signin.updates import ACDC, GMP, MEST, SET, Constant, Cosine, Cubic, Once, OneShot, RigL, SRigL, Stages
from tests.resuming import Manual, SaveEverywhere
from tests.small import BATCHES, Small, callback, copies, differing, loader, seeded, trainer
from tests.update_references import to_mask

RULES = {
    "set": {"update": SET(Constant(4))},
    "rigl": {"update": RigL(Cosine(4))},
    "srigl": {"update": SRigL(Cosine(4))},
    "mest": {"update": MEST(Stages(4))},
    "gmp": {"update": GMP(Cubic(4))},
    "one-shot": {"update": OneShot(Once(0.5))},
    "acdc": {"update": ACDC()},
}
PARAMETRIZATIONS = {
    "str": {"parametrization": STR(s_init=-4.0), "sparsity": None},
    "str with sign-in": {"parametrization": STR(True, s_init=-4.0), "sparsity": None},
    "powerprop": {"parametrization": Powerprop(), "update": GMP(Cubic(4))},
    "spred": {"parametrization": Spred(decay_strength=1e-3)},
    "pilot": {"parametrization": PILoT(decay_strength=1e-3, delta=1.5)},
}
# Before and at an update, after one, at epoch ends, within and between phases.
MOMENTS = ["step3", "step4", "step5", "epoch0", "step13", "step24", "epoch2", "step33"]


def fit(options, optimizer, *extra, model=None, ckpt_path=None):
    module = seeded(optimizer) if model is None else model
    if ckpt_path:  # nothing of the interrupted process is left
        torch.manual_seed(99)
        module = type(module)(optimizer)
    runner = trainer(callback(frobenius_decay=1e-3, **options), *extra)
    runner.fit(module, loader(), ckpt_path=ckpt_path)
    states = [value for one in runner.optimizers for state in one.state.values() for value in state.values()]
    return copies(module), states, runner.callbacks[0].state_dict()


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "SGD") for name in [*RULES, *PARAMETRIZATIONS]), *((name, "AdamW") for name in RULES)],
)
def test_resume_equals_uninterrupted(tmp_path, name, optimizer):
    options = (RULES | PARAMETRIZATIONS)[name]
    weights, states, saved = fit(options, optimizer, SaveEverywhere(tmp_path))
    for moment in MOMENTS if optimizer == "SGD" else MOMENTS[1::3]:
        again, states_again, saved_again = fit(options, optimizer, ckpt_path=tmp_path / f"{moment}.ckpt")
        assert differing(weights, again) == [], moment
        pairs = zip(states, states_again, strict=True)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs), moment
        for part in ("digest", "updates", "decay", "sign_flips"):
            assert str(saved[part]) == str(saved_again[part]), (moment, part)


def test_resume_of_two_optimizers_equals_uninterrupted(tmp_path):
    options = {"update": RigL(Cosine(4))}
    seeded()
    weights, *_ = fit(options, "SGD", SaveEverywhere(tmp_path), model=Manual())
    for moment in ("step8", "step14", "step24"):
        again, *_ = fit(options, "SGD", model=Manual(), ckpt_path=tmp_path / f"{moment}.ckpt")
        assert differing(weights, again) == [], moment


def test_a_name_and_its_object_are_the_same_run(tmp_path):
    weights, *_ = fit({"update": "rigl", "parametrization": "pilot"}, "SGD", SaveEverywhere(tmp_path))
    again, *_ = fit({"update": RigL(), "parametrization": PILoT()}, "SGD", ckpt_path=tmp_path / "step13.ckpt")
    assert differing(weights, again) == []


def test_resume_with_another_rule_is_refused(tmp_path):
    fit({"update": RigL(Cosine(4))}, "SGD", SaveEverywhere(tmp_path))
    with pytest.raises(
        ValueError, match=r"was trained with update='RigL\(schedule=Cosine\(every_n_steps=4.*this callback has"
    ):
        fit({"update": RigL(Cosine(5))}, "SGD", ckpt_path=tmp_path / "step5.ckpt")
    with pytest.raises(ValueError, match="was trained with parametrization='sign-in', but this callback"):
        fit({"update": RigL(Cosine(4)), "parametrization": "plain"}, "SGD", ckpt_path=tmp_path / "step5.ckpt")


@pytest.mark.parametrize("options", [*RULES.values(), *PARAMETRIZATIONS.values()], ids=[*RULES, *PARAMETRIZATIONS])
def test_checkpoints_of_any_moment_are_plain(tmp_path, options):
    fit(options, "SGD", SaveEverywhere(tmp_path))
    for step in (5, 2 * BATCHES):
        saved = torch.load(tmp_path / f"step{step}.ckpt", weights_only=True)
        model = Small()
        model.load_state_dict(saved["state_dict"], strict=True)
        assert list(saved["state_dict"]) == list(model.state_dict())
        assert model(torch.randn(2, 10)).isfinite().all()


def test_mask_of_a_soft_threshold_run_is_what_it_left(tmp_path):
    """The mask below is all True: what counts for other runs are the zeros that the threshold made."""
    options = {"parametrization": STR(s_init=-3.0), "sparsity": None}
    module = seeded()
    runner = trainer(callback(**options))
    runner.fit(module, loader())
    runner.save_checkpoint(tmp_path / "str.ckpt")
    zeros = sum(int((module.get_parameter(name) == 0).sum()) for name in ("fc1.weight", "conv.weight", "fc2.weight"))
    assert zeros > 100
    other = seeded()
    runner = trainer(callback(mask_from=tmp_path / "str.ckpt", sparsity=None), epochs=1)
    runner.fit(other, loader())
    for name in ("conv.weight", "fc1.weight", "fc2.weight"):
        expected = to_mask(
            [i for i, v in enumerate(module.get_parameter(name).flatten().tolist()) if v], module.get_parameter(name)
        )
        assert not other.get_parameter(name)[~expected].any()
        assert other.get_parameter(name)[expected].all()
