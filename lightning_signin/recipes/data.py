"""The recipes' data modules."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_signin.recipes import datasets
from lightning_signin.recipes.datasets import Split


class TensorData(LightningDataModule):
    """Three splits of tensors, small enough to stay in memory.

    Args:
        batch_size: Samples per batch.
        num_workers: Loader processes; 0 is fastest for data in memory.
    """

    def __init__(self, batch_size: int = 64, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def splits(self) -> tuple[Split, Split, Split]:
        """(inputs, labels) for training, validation and testing."""
        raise TypeError(f"{type(self).__name__} must define `splits`.")

    def setup(self, stage: str) -> None:
        """Make the splits."""
        self.train, self.val, self.test = (TensorDataset(*split) for split in self.splits())

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; the last, smaller batch is dropped."""
        return DataLoader(
            self.train, batch_size=self.batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.val, batch_size=512)

    def test_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return DataLoader(self.test, batch_size=512)

    predict_dataloader = test_dataloader


class Digits(TensorData):
    """scikit-learn's handwritten digits, 8×8; see `datasets.digits`."""

    def splits(self) -> tuple[Split, Split, Split]:
        """1,257, 180 and 360 images."""
        return datasets.digits()


class MNIST1D(TensorData):
    """MNIST-1D; the validation data are 1,000 samples from the same generator with another seed."""

    def splits(self) -> tuple[Split, Split, Split]:
        """4,000, 1,000 and 1,000 sequences of length 40."""
        train, test = datasets.mnist1d()
        return train, datasets.mnist1d(seed=43)[1], test
