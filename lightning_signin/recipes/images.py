"""CIFAR and ImageNet as data modules, with torchvision and timm."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from lightning_signin.errors import MissingFileError, SignInError


class Images(LightningDataModule):
    """A training and a test set of images; the validation set is the test set, so do not use it for model selection.

    Args:
        root: The folder of the data.
        batch_size: Training images per step, over all devices: each device takes its share.
        num_workers: Loader processes per device.
    """

    def __init__(self, root: str, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.root, self.batch_size, self.num_workers = Path(root).expanduser(), batch_size, num_workers

    def images(self, train: bool) -> Dataset[Any]:
        """The (image, label) pairs of the training or the test set, transformed."""
        raise TypeError(f"{type(self).__name__} must define `images`.")

    def setup(self, stage: str) -> None:
        """Open the sets that the stage needs."""
        if stage == "fit":
            self.train = self.images(train=True)
        self.test = self.images(train=False)

    def batch_of_device(self) -> int:
        """Training images per step and device.

        Returns:
            Their number.

        Raises:
            SignInError: If devices cannot share the batch evenly.

        Example:
            >>> CIFAR10("data", batch_size=512).batch_of_device()
            512
        """
        devices = self.trainer.world_size if self.trainer else 1
        if self.batch_size % devices:
            raise SignInError(
                f"`batch_size` must be a multiple of the number of devices, {devices}, which share it; got "
                f"{self.batch_size}. Pass --data.init_args.batch_size={max(self.batch_size // devices, 1) * devices}."
            )
        return self.batch_size // devices

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; the last, smaller batch is dropped."""
        return self._loader(self.train, training=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The test images, in order."""
        return self._loader(self.test, training=False)

    test_dataloader = predict_dataloader = val_dataloader

    def _loader(self, images: Dataset[Any], training: bool) -> DataLoader[Any]:
        return DataLoader(
            images,
            self.batch_of_device(),
            shuffle=training,
            drop_last=training,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )


class CIFAR10(Images):
    """CIFAR-10, with flips and crops after padding by 4 pixels (He et al., 2016), standardized per channel.

    Args:
        root: The folder that contains ``cifar-10-batches-py``, or to which it is downloaded.
        batch_size: Training images per step, over all devices.
        num_workers: Loader processes per device.
        download: Download what ``root`` lacks.
    """

    dataset: ClassVar[str] = "CIFAR10"  # the name of its class in torchvision
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str = "data", batch_size: int = 512, num_workers: int = 4, download: bool = True) -> None:
        super().__init__(root, batch_size, num_workers)
        self.download = download

    def prepare_data(self) -> None:
        """Download."""
        if self.download:
            self._dataset_class()(self.root, download=True)

    def images(self, train: bool) -> Dataset[Any]:
        """50,000 and 10,000 images."""
        from torchvision import transforms

        augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if train else []
        tensors = [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        return self._dataset_class()(self.root, train=train, transform=transforms.Compose([*augmentation, *tensors]))

    def _dataset_class(self) -> Callable[..., Dataset[Any]]:
        from torchvision import datasets

        return getattr(datasets, self.dataset)


class CIFAR100(CIFAR10):
    """CIFAR-100, like `CIFAR10`; its folder is ``cifar-100-python``."""

    dataset = "CIFAR100"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


class ImageNet(Images):
    """ImageNet, or any images in folders ``train/CLASS/`` and ``val/CLASS/``, through timm's transforms.

    Args:
        root: The folder that has ``train`` and ``val``.
        batch_size: Training images per step, over all devices.
        num_workers: Loader processes per device.
        image_size: Height and width after crops.
        augmentation: Arguments of ``timm.data.create_transform`` for training; None uses its defaults: random crops,
            flips and color jitter.
    """

    def __init__(
        self,
        root: str = "imagenet",
        batch_size: int = 1024,
        num_workers: int = 8,
        image_size: int = 224,
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(root, batch_size, num_workers)
        self.image_size, self.augmentation = image_size, augmentation or {}

    def images(self, train: bool) -> Dataset[Any]:
        """1,281,167 and 50,000 images.

        Returns:
            The images with the transforms of training or of evaluation.

        Raises:
            MissingFileError: If ``root`` lacks these folders.
        """
        from timm.data import create_transform
        from torchvision.datasets import ImageFolder

        folder = self.root / ("train" if train else "val")
        if not folder.is_dir():
            raise MissingFileError(
                f"There is no folder {folder}. The data's `root` must have the folders train and val, each with a "
                "folder of images for every class. Pass --data.init_args.root=FOLDER."
            )
        options: dict[str, Any] = self.augmentation if train else {"crop_pct": 0.875}  # 224 of 256
        return ImageFolder(folder, create_transform(self.image_size, is_training=train, **options))
