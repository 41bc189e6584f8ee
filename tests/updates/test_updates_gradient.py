"""Which gradient an update looks at: accumulated batches, several optimizers, scaled and broken losses."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_signin.updates import GMP, MEST, SET, Constant, Cosine, Cubic, RigL, Stages
from tests.small import Small, callback, data, loader, seeded, trainer
from tests.watching import STEPS, Watch, watched


@pytest.mark.parametrize(
    ("rule", "looks"), [(RigL(Cosine(5)), [0, 5, 10, 15, 20, 25]), (SET(Constant(5)), []), (GMP(Cubic(5)), [])]
)
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
        _, watch, runner = watched(RigL(Cosine(2)), Even(), data_loader=DataLoader(data(), size), options=options)
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
    rule = RigL(Cosine(4))
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
        _, watch, _ = watched(RigL(Cosine(4)), kind(), sparsity=0.5, distribution="uniform")
        found.append([found["fc1.weight"] for found in watch.masks])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_scaled_loss_does_not_change_what_is_important():
    """MEST adds |g| to |θ|: the gradient has to be the loss's own."""

    found = []
    for scale in (1.0, 1024.0):
        seeded()
        net = Even()
        run = trainer(callback(update=MEST(Stages(3))), watch := Watch(), precision="64-true")
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
        _, watch, _ = watched(RigL(Cosine(4)), Explodes(), parametrization="plain")
    changed = [
        step
        for step in range(1, STEPS)
        if any(not torch.equal(watch.masks[step][name], watch.masks[step - 1][name]) for name in watch.masks[0])
    ]
    assert changed[:2] == [5, 8]
