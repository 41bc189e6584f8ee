"""What tests of resuming need: checkpoints at every moment, and a model that steps by hand."""

import torch
from lightning.pytorch import Callback, Trainer

from tests.small import Small


class SaveEverywhere(Callback):
    """Saves after every optimizer step and at every epoch's end."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        path = self.folder / f"step{trainer.global_step}.ckpt"
        if not path.exists():
            trainer.save_checkpoint(path)

    def on_train_epoch_end(self, trainer: Trainer, module: object) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


class Manual(Small):
    """Two optimizers, stepped by hand."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        early, late = (
            [*self.conv.parameters(), *self.norm.parameters()],
            [*self.fc1.parameters(), *self.fc2.parameters()],
        )
        return torch.optim.SGD(early, 0.1, momentum=0.9), torch.optim.AdamW(late, 0.01)
