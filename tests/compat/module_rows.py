"""What a LightningModule may do itself: manual optimization, a GAN, hooks that it overrides, layers made late."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compat.rows import Row
from tests.compat.task import Net, Task

NO_NETWORK = "It could not be checked that the mask leaves a path"


class Manual(Task):
    """Manual optimization with accumulation, clipping and a schedule."""

    def __init__(self, clip: str = "norm") -> None:
        super().__init__(optimizers=self.adamw)
        self.automatic_optimization, self.clip = False, clip

    @staticmethod
    def adamw(module: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss, optimizer = self.loss(batch), self.optimizers()
        self.losses.append(loss.item())
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.clip_gradients(optimizer, 0.1, self.clip)
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()


class GAN(Task):
    """A generator and a discriminator of digits, each with its optimizer and schedule."""

    def __init__(self) -> None:
        super().__init__(lambda: nn.ModuleDict({"draw": generator(), "judge": discriminator()}), self.two)
        self.automatic_optimization = False

    @staticmethod
    def two(module: Any) -> Any:
        optimizers = [torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999)) for part in module.net.values()]
        return optimizers, [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        real, (draw, judge) = batch[0], self.net.values()
        of_draw, of_judge = self.optimizers()
        self.toggle_optimizer(of_judge)
        drawn = draw(torch.randn(len(real), 8)).detach()
        loss = bce(judge(real), 1.0) + bce(judge(drawn), 0.0)
        self.step(of_judge, loss)
        self.untoggle_optimizer(of_judge)
        self.toggle_optimizer(of_draw)
        self.step(of_draw, bce(judge(draw(torch.randn(len(real), 8))), 1.0))
        self.untoggle_optimizer(of_draw)

    def step(self, optimizer: Any, loss: Tensor) -> None:
        self.losses.append(loss.item())
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", bce(self.net["judge"](batch[0]), 1.0))


def bce(scores: Tensor, label: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, label))


def generator() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 1, 4, 4))


def discriminator() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(36, 1))


class WarmUp(Task):
    """The warm-up of Lightning's documentation, in `optimizer_step`, with other hooks of the optimization beside it."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 5)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(self, optimizer: Any, **_: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    def backward(self, loss: Tensor) -> None:
        (2 * loss).backward()


class Skips(Task):
    """Steps that return a dict, and now and then nothing."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor] | None:
        return {"loss": super().training_step(batch, batch_idx)} if batch_idx != 2 else None


class Late(Task):
    """The whole network is made in `configure_model`."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def configure_model(self) -> None:
        if self.net is None:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                self.net = Net()


class LateLazy(Late):
    """Lazy layers whose sizes a first batch in `configure_model` gives."""

    def configure_model(self) -> None:
        if self.net is None:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                self.net = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
                self.net(torch.zeros(1, 1, 8, 8))


class LateInSetup(Late):
    """The network is made in the module's own `setup`, which Lightning calls after that of callbacks."""

    def setup(self, stage: str) -> None:
        super().configure_model()


MODULES = [
    Row("manual optimization", Manual),
    Row("manual optimization, clipping by value", lambda: Manual("value")),
    Row("manual optimization, bf16-mixed", Manual, lambda folder: {"precision": "bf16-mixed"}),
    Row("GAN", GAN, says=NO_NETWORK),
    Row("hooks of the optimization", WarmUp),
    Row("steps that return a dict or None", Skips),
    Row("configure_model", Late),
    Row("lazy layers with known sizes", LateLazy),
    Row("setup of the module", LateInSetup),
]
