"""Update rules in a fit: exact counts, skipped steps, accumulation, several optimizers, and what is logged."""

import pytest
import torch
from lightning.pytorch import Callback

from lightning_signin import effective_weights, masks
from lightning_signin.updates import (
    ACDC,
    GMP,
    MEST,
    SET,
    Constant,
    Cosine,
    Cubic,
    Once,
    OneShot,
    Phases,
    RigL,
    SRigL,
    Stages,
)
from tests import reference
from tests.small import BATCHES, Small, callback, copies, differing, loader, seeded, trainer
from tests.watching import STEPS, Watch, watched

RULES = {
    "set": SET(Constant(3)),
    "rigl": RigL(Cosine(3)),
    "srigl": SRigL(Cosine(3)),
    "mest": MEST(Stages(3)),
    "gmp": GMP(Cubic(3)),
    "one-shot": OneShot(Once(0.5)),
    "acdc": ACDC(),
}

SIZE = 6 * 3 + 24 * 48 + 3 * 24

ALL_RULES = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def kept(found: dict[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


def test_count_is_exact_after_every_update():
    budget = reference.budget("0.7", SIZE)
    for name in ("set", "rigl"):
        _, watch, _ = watched(RULES[name])
        assert {kept(found) for found in watch.masks} == {budget}
        assert len({tuple(found["fc1.weight"].flatten().tolist()) for found in watch.masks}) > 5
    _, watch, _ = watched(MEST(Stages(3)))
    soft = round(budget + 0.05 * SIZE)
    # From the first update on more, from 90/160 of the run on less of it, from 120/160 on what was asked for.
    expected = [budget] * 3 + [soft] * (24 - 3) + [round(budget + 0.025 * SIZE)] * (30 - 24) + [budget] * 10
    assert [kept(found) for found in watch.masks] == expected
    gmp = GMP(Cubic(3))
    steps = gmp.schedule.steps(STEPS)
    _, watch, _ = watched(gmp)
    shares = [1 - gmp.sparsity(0.7, gmp.schedule.amount(step, STEPS)) for step in steps]
    by_update = [round(SIZE * share) for share in shares[:-1]] + [budget]
    assert [kept(watch.masks[step]) for step in steps] == by_update
    _, watch, _ = watched(ACDC())
    phases = [kept(watch.masks[step]) for step in Phases().steps(STEPS)]
    assert phases == [budget, SIZE] * (len(phases) // 2) + [budget]
    assert kept(watch.masks[-1]) == budget


@ALL_RULES
def test_the_end_is_a_plain_model_of_the_sparsity_asked_for(rule):
    module, watch, runner = watched(rule)
    state = runner.callbacks[0].state_dict()
    assert list(copies(module)) == list(Small().state_dict())
    off = 1 if isinstance(rule, SRigL) else 0  # constant fan-in makes multiples of the neurons
    assert abs(kept(watch.masks[-1]) - reference.budget("0.7", SIZE)) <= 12 * off
    for name, mask in watch.masks[-1].items():
        assert not module.get_parameter(name)[~mask].any()
    assert state["updates"]["lanes"][0][0] == STEPS


def test_a_skipped_step_changes_nothing_and_the_run_goes_on():
    module, watch, runner = watched(RigL(Cosine(3)), model=seeded("SGD", lr=0.1, momentum=0.9, weight_decay=0.1))
    steps = Cosine(3).steps(STEPS)
    names = [name for name, _ in module.named_parameters()]
    assert runner.global_step == STEPS
    assert len(set(watch.rates)) == STEPS  # the schedule goes on at every step
    for step in range(1, STEPS):
        before, after = watch.weights[step - 1], watch.weights[step]
        changed = [name for name in names if not torch.equal(before[name], after[name])]
        if step in steps:  # but for the mask
            assert set(changed) <= set(watch.masks[step])
            for name in changed:
                stay = watch.masks[step][name] & watch.masks[step - 1][name]
                assert torch.equal(before[name][stay], after[name][stay])
                assert not after[name][~stay].any()
        elif step % BATCHES:  # at an epoch's start a rescale moves the last digits, too
            assert changed == names


def test_rules_that_skip_no_step_train_at_every_step():
    for rule in (SET(Constant(3)), MEST(Stages(3)), GMP(Cubic(3))):
        _, watch, _ = watched(rule)
        for before, after in zip(watch.weights, watch.weights[1:], strict=False):
            assert not torch.equal(before["fc2.bias"], after["fc2.bias"])


def test_what_is_logged():
    rule, change = RigL(Cosine(3)), []

    class Read(Callback):
        def on_train_epoch_end(self, trainer, module):
            change.append({n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("signin/")})

    watch = Watch()
    trainer(callback(update=rule), watch, Read()).fit(seeded(), loader())
    for epoch, logged in enumerate(change):
        last = max(step for step in rule.schedule.steps(STEPS) if step < (epoch + 1) * BATCHES)
        old, new = (
            torch.cat([m.flatten() for m in found.values()]) for found in (watch.masks[last - 1], watch.masks[last])
        )
        assert logged["signin/mask_change"] == pytest.approx((old & ~new).sum().item() / old.sum().item())
        done = sum(step < (epoch + 1) * BATCHES for step in rule.schedule.steps(STEPS))
        assert logged["signin/update_progress"] == pytest.approx(done / len(rule.schedule.steps(STEPS)))
        assert logged["signin/sparsity"] == pytest.approx(1 - reference.budget("0.7", SIZE) / SIZE)


@pytest.mark.parametrize("rule", [RigL(Cosine(3)), ACDC(), SET(Constant(3))])
def test_sign_flips_are_counted_through_moving_masks(rule):
    class Count(Callback):
        def on_train_start(self, trainer, module):
            self.start, self.seen = effective_weights(module), 0

        def on_train_epoch_end(self, trainer, module):
            now, kept_now = effective_weights(module), masks(module)
            flips = sum(int((self.start[n] * now[n] < 0).sum()) for n in now)
            assert trainer.callback_metrics["signin/sign_flips"] == pytest.approx(flips / kept(kept_now))
            self.seen += flips

    count = Count()
    trainer(callback(update=rule), count).fit(seeded("SGD", lr=0.3), loader())
    assert count.seen > 0


def test_the_same_seed_gives_the_same_run():
    runs = [watched(SET(Constant(3)), seed=seed)[0] for seed in (0, 0, 1)]
    assert differing(copies(runs[0]), copies(runs[1])) == []
    assert differing(copies(runs[0]), copies(runs[2])) != []


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("rule", [RigL(Cosine(3)), ACDC()])
def test_precisions(rule, precision):
    module, watch, _ = watched(rule, options={"precision": precision})
    assert kept(watch.masks[-1]) == reference.budget("0.7", SIZE)
    assert all(value.isfinite().all() for value in copies(module).values())
