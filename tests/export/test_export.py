"""Files are written whole or not at all."""

import os

import pytest
import torch
from torch import nn

from lightning_signin import merge_, sparsify
from lightning_signin.export import write_safetensors
from lightning_signin.report import layer_table
from lightning_signin.weightfiles.saved import SavedWeights, read_weights


def net() -> nn.Module:
    return sparsify(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), sparsity=0.5)


def test_written_weights_read_back_bit_for_bit(tmp_path):
    module = net()
    path = write_safetensors(read_weights(module), tmp_path / "merged.safetensors")
    again = read_weights(path)
    assert again.kept == {"0.weight": 24, "2.weight": 16}
    merged = merge_(module).state_dict()
    assert set(again.tensors) == set(merged)
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in merged.items())


def test_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = write_safetensors(read_weights(net()), tmp_path / "merged.safetensors")
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_safetensors(read_weights(net()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_table_counts_masks_apart_from_dense_layers():
    weights = SavedWeights({"a": torch.eye(4), "b": torch.ones(2, 2), "bias": torch.zeros(4)}, {"a": 5}, {"a": 1})
    rows = [line.split() for line in layer_table(weights).splitlines()]
    assert rows[1] == ["a", "4×4", "4", "75.00", "%", "20.00", "%"]
    assert rows[2] == ["b", "2×2", "4", "0.00", "%"]
    assert rows[3] == ["total", "4", "75.00", "%", "20.00", "%"]
