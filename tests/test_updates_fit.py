"""Update rules in a fit: exact counts, skipped steps, accumulation, several optimizers, and what is logged."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_signin import effective_weights, masks
from lightning_signin.updates import ACDC, GMP, MEST, SET, OneShot, RigL, SRigL
from lightning_signin.weights import sparse_weights
from tests import reference
from tests.small import BATCHES, Small, callback, copies, data, differing, loader, seeded, trainer

RULES = {
    "set": SET(3),
    "rigl": RigL(3),
    "srigl": SRigL(3),
    "mest": MEST(3),
    "gmp": GMP(3),
    "one-shot": OneShot(0.5),
    "acdc": ACDC(),
}
STEPS = 4 * BATCHES
SIZE = 6 * 3 + 24 * 48 + 3 * 24
ALL_RULES = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


class Watch(Callback):
    """Notes what there is before and after every optimizer step."""

    def __init__(self) -> None:
        self.masks, self.weights, self.rates, self.probed = [], [], [], []

    def on_before_zero_grad(self, trainer, module, optimizer):
        self.probed.append(any(w.parametrization.probe is not None for w in sparse_weights(module).values()))

    def on_train_batch_end(self, trainer, module, *_):
        self.masks.append(masks(module))
        self.weights.append({**copies(module)})
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def watched(rule, model=None, sparsity=0.7, data_loader=None, options=None, **arguments):
    module, watch = model or seeded(), Watch()
    runner = trainer(callback(update=rule, sparsity=sparsity, **arguments), watch, **(options or {}))
    runner.fit(module, loader() if data_loader is None else data_loader)
    return module, watch, runner


def kept(found: dict[str, torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in found.values())


def test_count_is_exact_after_every_update():
    budget = reference.budget("0.7", SIZE)
    for name in ("set", "rigl"):
        _, watch, _ = watched(RULES[name])
        assert {kept(found) for found in watch.masks} == {budget}
        assert len({tuple(found["fc1.weight"].flatten().tolist()) for found in watch.masks}) > 5
    _, watch, _ = watched(MEST(3))
    soft = round(budget + 0.05 * SIZE)
    # From the first update on more, from 90/160 of the run on less of it, from 120/160 on what was asked for.
    expected = [budget] * 3 + [soft] * (24 - 3) + [round(budget + 0.025 * SIZE)] * (30 - 24) + [budget] * 10
    assert [kept(found) for found in watch.masks] == expected
    steps = GMP(3).steps(STEPS)
    _, watch, _ = watched(GMP(3))
    by_update = [round(SIZE * (1 - GMP(3).sparsity(0.7, step, steps))) for step in steps[:-1]] + [budget]
    assert [kept(watch.masks[step]) for step in steps] == by_update
    _, watch, _ = watched(ACDC())
    phases = [kept(watch.masks[step]) for step in ACDC().steps(STEPS)]
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
    module, watch, runner = watched(RigL(3), model=seeded("SGD", lr=0.1, momentum=0.9, weight_decay=0.1))
    steps = RigL(3).steps(STEPS)
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
    for rule in (SET(3), MEST(3), GMP(3)):
        _, watch, _ = watched(rule)
        for before, after in zip(watch.weights, watch.weights[1:], strict=False):
            assert not torch.equal(before["fc2.bias"], after["fc2.bias"])


@pytest.mark.parametrize(("rule", "looks"), [(RigL(5), [0, 5, 10, 15, 20, 25]), (SET(5), []), (GMP(5), [])])
def test_dense_gradients_are_formed_only_where_they_are_needed(rule, looks):
    _, watch, _ = watched(rule)
    assert [step for step, probed in enumerate(watch.probed) if probed] == looks


class Even(Small):
    """Without dropout and batch norm, in float64: a mean over two batches is that of one of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.Identity(), nn.Identity()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)


def test_accumulated_batches_count_as_one():
    """The dense gradient is that of all batches of a window."""
    found = []
    for size, accumulate in ((16, 1), (8, 2), (4, 4)):
        seeded()
        options = {"accumulate_grad_batches": accumulate, "precision": "64-true", "epochs": 6}
        _, watch, runner = watched(RigL(2), Even(), data_loader=DataLoader(data(), size), options=options)
        assert runner.global_step == 30
        found.append(watch.masks[-1])
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


class Adversaries(Small):
    """Two networks with an optimizer each, toggled, the second one with two steps a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(10, 8)
        self.judge = nn.Linear(10, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        first.zero_grad()
        loss = -self.judge(self.other(batch[0][:, :10]).tanh() @ torch.ones(8, 10) + batch[0]).mean()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        for _ in range(2):
            second.zero_grad()
            self.manual_backward(self.judge(batch[0]).square().mean() + self(batch[0]).square().mean())
            second.step()

    def configure_optimizers(self):
        mine = list(self.other.parameters())
        rest = [p for n, p in self.named_parameters() if not n.startswith("other")]
        return torch.optim.SGD(mine, 0.05), torch.optim.SGD(rest, 0.01)


def test_optimizers_count_for_themselves():
    rule = RigL(4)
    _, watch, runner = watched(rule, Adversaries(), sparsity=0.5, distribution="uniform")
    lanes = runner.callbacks[0].state_dict()["updates"]["lanes"]
    assert [steps for steps, _ in lanes] == [STEPS, 2 * STEPS]
    for name, every in (("other.weight", 4), ("fc1.weight", 2)):
        changes = [
            batch
            for batch in range(1, STEPS)
            if not torch.equal(watch.masks[batch][name], watch.masks[batch - 1][name])
        ]
        assert changes
        assert all(batch % every == 0 for batch in changes)


def test_a_weight_of_another_loss_does_not_disturb_the_gradient():
    """The judge's dense gradient is that of its own optimizer's loss, after its `zero_grad`."""

    class Alone(Adversaries):
        def training_step(self, batch, batch_idx):
            second = self.optimizers()[1]
            for _ in range(2):
                second.zero_grad()
                self.manual_backward(self.judge(batch[0]).square().mean() + self(batch[0]).square().mean())
                second.step()

    found = []
    for kind in (Adversaries, Alone):
        seeded()
        _, watch, _ = watched(RigL(4), kind(), sparsity=0.5, distribution="uniform")
        found.append([found["fc1.weight"] for found in watch.masks])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_logged():
    rule, change = RigL(3), []

    class Read(Callback):
        def on_train_epoch_end(self, trainer, module):
            change.append({n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("signin/")})

    watch = Watch()
    trainer(callback(update=rule), watch, Read()).fit(seeded(), loader())
    for epoch, logged in enumerate(change):
        last = max(step for step in rule.steps(STEPS) if step < (epoch + 1) * BATCHES)
        old, new = (
            torch.cat([m.flatten() for m in found.values()]) for found in (watch.masks[last - 1], watch.masks[last])
        )
        assert logged["signin/mask_change"] == pytest.approx((old & ~new).sum().item() / old.sum().item())
        done = sum(step < (epoch + 1) * BATCHES for step in rule.steps(STEPS))
        assert logged["signin/update_progress"] == pytest.approx(done / len(rule.steps(STEPS)))
        assert logged["signin/sparsity"] == pytest.approx(1 - reference.budget("0.7", SIZE) / SIZE)


@pytest.mark.parametrize("rule", [RigL(3), ACDC(), SET(3)])
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
    runs = [watched(SET(3), seed=seed)[0] for seed in (0, 0, 1)]
    assert differing(copies(runs[0]), copies(runs[1])) == []
    assert differing(copies(runs[0]), copies(runs[2])) != []


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("rule", [RigL(3), ACDC()])
def test_precisions(rule, precision):
    module, watch, _ = watched(rule, options={"precision": precision})
    assert kept(watch.masks[-1]) == reference.budget("0.7", SIZE)
    assert all(value.isfinite().all() for value in copies(module).values())


def test_a_scaled_loss_does_not_change_what_is_important():
    """MEST adds |g| to |θ|: the gradient has to be the loss's own."""

    found = []
    for scale in (1.0, 1024.0):
        seeded()
        net = Even()
        run = trainer(callback(update=MEST(3)), watch := Watch(), precision="64-true")
        run.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        original = net.training_step
        net.training_step = lambda batch, index, step=original, factor=scale: step(batch, index) * factor
        net.configure_optimizers = lambda of=net, factor=scale: torch.optim.SGD(of.parameters(), 0.01 / factor)
        run.fit(net, loader())
        found.append(watch.masks[-1])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_gradient_that_is_not_finite_puts_the_update_off():
    class Explodes(Small):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if self.global_step == 4 else loss

        def configure_gradient_clipping(self, optimizer, *_, **__):
            if any(p.grad is not None and not p.grad.isfinite().all() for p in self.parameters()):
                optimizer.zero_grad()

    seeded()
    with pytest.warns(UserWarning, match="gradient of conv.weight is not finite at step 4: the mask update waits"):
        _, watch, _ = watched(RigL(4), Explodes(), parametrization="plain")
    changed = [
        step
        for step in range(1, STEPS)
        if any(not torch.equal(watch.masks[step][name], watch.masks[step - 1][name]) for name in watch.masks[0])
    ]
    assert changed[:2] == [5, 8]
