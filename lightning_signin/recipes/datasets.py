"""Small real datasets that come with packages or are generated: nothing is downloaded."""

import random

import numpy as np
import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]


def mnist1d(seed: int = 42, samples: int = 5000) -> tuple[Split, Split]:
    """MNIST-1D (Greydanus, Kobak: "Scaling Down Deep Learning with MNIST-1D", ICML 2024), generated locally.

    Args:
        seed: Seed of the generator; 42 is the benchmark's own dataset, others are fresh draws of the same distribution.
        samples: Number of samples, of which 80 % are for training.

    Returns:
        (inputs, labels) for training and for testing: float32 of shape (n, 40), int64 of shape (n,) in [0, 10).
    """
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.seed, args.num_samples = seed, samples
    # The package seeds every global generator: restore them.
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        data = make_dataset(args)
    random.setstate(python)
    np.random.set_state(legacy)
    return _tensors(data["x"], data["y"]), _tensors(data["x_test"], data["y_test"])


def digits() -> tuple[Split, Split, Split]:
    """scikit-learn's bundled handwritten digits: 1,797 images of 8×8.

    Returns:
        (images, labels) for training (1,257), validation (180) and testing (360), stratified, always the same split:
        float32 of shape (n, 1, 8, 8), standardized by the training images; int64 in [0, 10).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    rest, test, rest_labels, test_labels = train_test_split(
        images, labels, test_size=360, stratify=labels, random_state=0
    )
    train, val, train_labels, val_labels = train_test_split(
        rest, rest_labels, test_size=180, stratify=rest_labels, random_state=0
    )
    mean, std = train.mean(), train.std()
    parts = ((train, train_labels), (val, val_labels), (test, test_labels))
    train_split, val_split, test_split = (_tensors(((x - mean) / std).reshape(-1, 1, 8, 8), y) for x, y in parts)
    return train_split, val_split, test_split


def _tensors(inputs: np.ndarray, labels: np.ndarray) -> Split:
    return torch.tensor(inputs, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
