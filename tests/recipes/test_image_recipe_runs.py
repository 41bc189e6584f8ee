"""The recipes for CIFAR and ImageNet run, for two batches each.

The data are tiny, in the datasets' own file formats, so that the code that loads them is the one that loads the real.
"""

import hashlib
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lightning_signin.cli.main import main
from lightning_signin.recipes.images import CIFAR10, ImageNet
from lightning_signin.recipes.networks import cifar_resnet
from lightning_signin.weightfiles.saved import read_weights
from tests.ranks import output_of

# How many weights Conv and Linear layers have, and which share of them is zero.
SIZES = {
    "cifar10-resnet20": (270_896, 0.9),
    "cifar100-resnet18": (11_210_432, 0.9),
    "imagenet-resnet50": (25_502_912, 0.9),
    "imagenet-deit-small": (21_912_576, 0.5),
}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Batches of six images in ``data``, as the archives hold them, and their checksums in torchvision."""

    def write(dataset: type, file: str, content: dict) -> str:
        path = tmp_path / "data" / dataset.base_folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=2))
        return hashlib.md5(path.read_bytes()).hexdigest()

    for name, label, classes in (("CIFAR10", "labels", 10), ("CIFAR100", "fine_labels", 100)):
        dataset = getattr(torchvision.datasets, name)
        for part in ("train_list", "test_list"):
            files = [file for file, _ in getattr(dataset, part)]
            batch = {"data": noise(6, 3072), label: [0, 1, 2, 7, 8, 9], "filenames": [f"{i}.png" for i in range(6)]}
            written = [[file, write(dataset, file, {**batch, "batch_label": file})] for file in files]
            monkeypatch.setattr(dataset, part, written)
        names = {dataset.meta["key"]: [f"class {i}" for i in range(classes)]}
        checksum = write(dataset, dataset.meta["filename"], names)
        monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": checksum})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """Two classes of four images in ``imagenet``."""
    for split in ("train", "val"):
        for synset in ("n01440764", "n01443537"):
            folder = tmp_path / "imagenet" / split / synset
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(noise(60 + i, 80, 3)).save(folder / f"{synset}_{i}.JPEG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TWO_BATCHES = [
    "--trainer.max_epochs=1",
    *(f"--trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")),
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--data.init_args.num_workers=0",
]


def merged_is_sparse(folder: Path, recipe: str) -> None:
    weights = read_weights(folder / "runs" / recipe / "version_0" / "merged.safetensors")
    size, sparsity = SIZES[recipe]
    sparse = [weights.tensors[name] for name in weights.kept]
    assert sum(weight.numel() for weight in sparse) == size
    kept = round((1 - sparsity) * size)
    assert sum(weights.kept.values()) == sum(int(weight.count_nonzero()) for weight in sparse) == kept


@pytest.mark.parametrize("recipe", ["cifar10-resnet20", "cifar100-resnet18"])
def test_cifar_recipe_runs_unchanged(cifar, capsys, recipe):
    main(["fit", "--config", recipe, *TWO_BATCHES, "--data.init_args.batch_size=3"])
    assert "test_acc" in capsys.readouterr().out
    merged_is_sparse(cifar, recipe)


@pytest.mark.parametrize("mask", ["snip", "npb"])
def test_cifar_recipe_scores_its_own_batches_and_network(cifar, mask):
    scored = f"--trainer.callbacks.init_args.mask={mask}"
    main(["fit", "--config", "cifar10-resnet20", *TWO_BATCHES, "--data.init_args.batch_size=3", scored])
    merged_is_sparse(cifar, "cifar10-resnet20")


@pytest.mark.parametrize("recipe", ["imagenet-resnet50", "imagenet-deit-small"])
def test_imagenet_recipe_runs_unchanged(imagenet, capsys, recipe):
    main(["fit", "--config", recipe, *TWO_BATCHES, "--data.init_args.batch_size=2"])
    assert "test_acc" in capsys.readouterr().out
    merged_is_sparse(imagenet, recipe)


def test_devices_share_the_batch(imagenet):
    small = ["--model.init_args.network.init_args.name=resnet10t", "--data.init_args.image_size=32"]
    options = [*TWO_BATCHES, *small, "--data.init_args.batch_size=4", "--trainer.devices=2"]
    executable = Path(sys.executable).parent / "lightning-signin"
    whole = [str(executable), "fit", "--config", "imagenet-resnet50", *options, "--trainer.limit_train_batches=1.0"]
    output_of(whole, imagenet, timeout=300)
    (checkpoint,) = imagenet.glob("runs/*/version_0/checkpoints/epoch*.ckpt")
    assert checkpoint.stem == "epoch=0-step=2"  # 8 images by 4


def test_batch_that_devices_cannot_share_is_refused():
    data = CIFAR10(batch_size=512)
    data.trainer = SimpleNamespace(world_size=3)
    with pytest.raises(ValueError, match=r"multiple of the number of devices, 3,.* got 512.*batch_size=510"):
        data.batch_of_device()


def test_augmentation_is_timms_and_only_for_training(imagenet):
    data = ImageNet("imagenet", 2, 0, image_size=32, augmentation={"auto_augment": "rand-m9-mstd0.5-inc1"})
    data.setup("fit")
    assert "RandAugment" in repr(data.train.transform)
    assert "Rand" not in repr(data.test.transform)
    assert data.train[0][0].shape == data.test[0][0].shape == (3, 32, 32)
    assert data.train.classes == ["n01440764", "n01443537"]


def test_root_without_imagenet_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", "--config", "imagenet-resnet50", *TWO_BATCHES])
    assert "There is no folder imagenet/train. The data's `root` must have" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torchvision", "timm"])
def test_missing_package_is_named_with_its_extra(cifar, monkeypatch, capsys, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "cifar100-resnet18", *TWO_BATCHES])
    assert stop.value.code == 2
    assert f"needs {missing}: pip install 'lightning-signin[vision]'" in capsys.readouterr().err


def test_cifar_resnet_keeps_the_resolution_and_its_blocks_start_alive():
    network = cifar_resnet(classes=100)
    stem = network.maxpool(network.act1(network.bn1(network.conv1(torch.randn(2, 3, 32, 32)))))
    assert stem.shape == (2, 64, 32, 32)
    assert network.layer1[0].bn2.weight.eq(1).all()
