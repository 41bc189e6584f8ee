"""Operations and bytes against closed forms; the counted module is left as it was."""

import copy

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from lightning_signin import masks, plain_view, sparsify
from lightning_signin.cli import main
from lightning_signin.metrics.flops import FlopCount, flops
from lightning_signin.metrics.memory import memory
from lightning_signin.recipes.models import Classifier, ResNet20
from lightning_signin.report.cost import byte_table, flop_table
from tests.counting import opens
from tests.families import mixtral


def rows(count: FlopCount) -> dict[str, tuple[int, int, int, int]]:
    return {row.name: (row.dense, row.sparse, row.product, row.paper_product) for row in count.layers}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Linear(6, 4), (5, 6), 2 * 5 * 6 * 4),
        (nn.Linear(6, 4, bias=False), (3, 5, 6), 2 * 3 * 5 * 6 * 4),
        (nn.Conv2d(6, 4, 3), (1, 6, 8, 8), 2 * 6 * 6 * 4 * 6 * 9),
        (nn.Conv2d(6, 4, 3, stride=2, padding=1), (1, 6, 9, 7), 2 * 5 * 4 * 4 * 6 * 9),
        (nn.Conv2d(6, 4, 3, dilation=2, groups=2), (2, 6, 8, 8), 2 * 2 * 4 * 4 * 4 * 3 * 9),
        (nn.Conv1d(6, 4, 3), (1, 6, 8), 2 * 6 * 4 * 6 * 3),
        (nn.ConvTranspose2d(6, 4, 3, stride=2), (1, 6, 5, 5), 2 * 5 * 5 * 6 * 4 * 9),  # each input meets each weight
        (nn.ConvTranspose2d(6, 4, 3, groups=2), (1, 6, 5, 5), 2 * 5 * 5 * 6 * 2 * 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_layer_has_its_closed_form(layer, shape, expected, storage):
    net, x = copy.deepcopy(layer), torch.zeros(shape)
    assert rows(flops(net, x)) == {"weight": (expected, expected, 0, 0)}
    sparsify(net, sparsity=0.75, storage=storage)
    kept, size = int(masks(net)["weight"].sum()), layer.weight.numel()
    product = kept if storage == "compact" else size
    assert rows(flops(net, x)) == {"weight": (expected, expected * kept // size, product, size)}


def test_attention_products_have_rows_of_their_own():
    net, (n, t, s, e) = nn.MultiheadAttention(16, 4, batch_first=True), (2, 5, 5, 16)
    x = torch.zeros(n, t, e)
    expected = {
        "in_proj_weight": 2 * n * t * e * 3 * e,
        "bmm": 2 * (2 * n * t * s * e),
        "out_proj.weight": 2 * n * t * e * e,
    }
    assert {name: row[0] for name, row in rows(flops(net, x, x, x)).items()} == expected
    sparsify(net, sparsity=0.75, include=["in_proj_weight"])
    counted = rows(flops(net, x, x, x, need_weights=False))
    assert counted["in_proj_weight"] == (expected["in_proj_weight"], expected["in_proj_weight"] // 4, 192, 768)
    assert counted["bmm"] == (expected["bmm"], expected["bmm"], 0, 0)
    assert counted["out_proj.weight"] == (expected["out_proj.weight"], expected["out_proj.weight"], 0, 0)


def test_encoder_layer_takes_no_fused_kernel_that_counts_nothing():
    net, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).requires_grad_(False), torch.zeros(1, 5, 16)
    assert flops(net, x).total.dense == 2 * 5 * 16 * (4 * 16 + 2 * 32) + 4 * 5 * 5 * 16


def test_deit_tiny_has_its_closed_form():
    net = timm.create_model("deit_tiny_patch16_224").eval()
    d, t = 192, 197
    block = 2 * t * d * (4 * d + 8 * d) + 4 * t * t * d
    dense = 2 * 196 * d * 3 * 256 + 12 * block + 2 * d * 1000
    assert flops(net, torch.zeros(1, 3, 224, 224)).total.dense == dense


def test_resnet50_counts_what_the_paper_counts():
    net, image = torchvision.models.resnet50(), torch.zeros(1, 3, 224, 224)
    dense = flops(net, image).total.dense
    assert f"{dense / 1e9:.2f}" == "8.18"
    total = flops(sparsify(net, sparsity=0.9), image).total
    assert total.dense == dense
    assert f"{total.sparse / 1e9:.2f}" == "3.35"
    assert total.paper_product == sum(mask.numel() for mask in masks(net).values()) == 25_502_912
    assert total.paper_sign_in == total.sparse + total.paper_product
    assert total.sign_in == total.sparse + total.product


class Odd(nn.Module):
    """A layer used twice, a tied weight, a weight that is never used, and a product without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.tied = nn.Linear(8, 8), nn.Linear(8, 8)
        self.embedding = nn.Embedding(8, 8)
        self.tied.weight = self.embedding.weight
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        x = self.twice(self.twice(x))
        x = self.tied(x + self.embedding(torch.zeros(len(x), dtype=torch.long)))
        return x @ x.T


def test_use_twice_ties_and_products_without_weights():
    net, x = Odd(), torch.zeros(3, 8)
    sparsify(net, sparsity=0.5, include=["twice.*", "tied.*", "embedding.*"], distribution="uniform")
    assert rows(flops(net, x)) == {
        "twice.weight": (768, 384, 64, 128),
        "tied.weight": (384, 192, 64, 128),
        "mm": (144, 144, 0, 0),
    }


def test_sparse_weight_that_is_not_used_counts_nothing():
    net = sparsify(Odd(), sparsity=0.5, include=["unused.weight"])
    assert rows(flops(net, torch.zeros(3, 8)))["unused.weight"] == (0, 0, 0, 0)


@pytest.mark.parametrize("parametrization", ["plain", "powerprop"])
def test_without_a_product_there_are_no_multiplications(parametrization):
    net = sparsify(nn.Linear(8, 8), sparsity=0.5, parametrization=parametrization)
    assert rows(flops(net, torch.zeros(1, 8))) == {"weight": (128, 64, 0, 0)}


def test_module_is_left_as_it_was():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + torch.randn_like(x))

    net = Noisy(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(64, 2))
    sparsify(net, sparsity=0.5)
    net[1].eval()
    net[4].bias.requires_grad_(False)
    net(torch.randn(2, 1, 6, 6)).sum().backward()
    modes = [part.training for part in net.modules()]
    before = copy.deepcopy((net.state_dict(), [p.grad for p in net.parameters()], torch.get_rng_state()))
    flags = [p.requires_grad for p in net.parameters()]
    flops(net, torch.zeros(1, 1, 6, 6))
    after = (net.state_dict(), [p.grad for p in net.parameters()], torch.get_rng_state())
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    assert torch.equal(before[2], after[2])
    assert [part.training for part in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == flags
    assert not any(part._forward_hooks for part in net.modules())


def test_training_step_takes_the_product_once_a_batch():
    total = flops(sparsify(nn.Linear(20, 10), sparsity=0.9), torch.zeros(1, 20)).total
    assert total.training(8) == {"dense": 3 * 8 * 400, "sparse": 3 * 8 * 40, "sign_in": 3 * 8 * 40 + 3 * 20}


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("make", "tensors", "scalar"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, 0),
        (lambda p: torch.optim.AdamW(p), 2, 4),
    ],
    ids=["SGD", "momentum", "AdamW"],
)
@pytest.mark.parametrize("storage", ["compact", "dense"])
def test_bytes_are_those_that_are_held(make, tensors, scalar, storage, stepped):
    net = sparsify(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5)), sparsity=0.8, storage=storage)
    with plain_view(net):
        optimizer = make(net.parameters())
    if stepped:
        F.mse_loss(net(torch.ones(2, 20)), torch.ones(2, 5)).backward()
        optimizer.step()
    count = memory(net, optimizer)
    entries = sum(p.numel() for p in net.parameters())
    held = count.total.sparse
    assert (held.parameters, held.gradients) == (4 * entries, 4 * entries)
    assert held.optimizer_state == 4 * tensors * entries + scalar * len(list(net.parameters()))
    assert held.index == 4 * (150 if storage == "compact" else 750)
    assert count.total.dense.total == 4 * (2 + tensors) * 785 + scalar * 4
    if stepped:
        state = [value for state in optimizer.state.values() for value in state.values() if value is not None]
        assert held.optimizer_state == sum(value.numel() * value.itemsize for value in state)


def test_number_of_state_tensors_stands_for_an_optimizer():
    net = sparsify(nn.Linear(20, 10, bias=False), sparsity=0.9)
    assert memory(net, 2).total.sparse.optimizer_state == 2 * 2 * 20 * 4
    assert memory(nn.Linear(20, 10), 0).total.sparse == memory(nn.Linear(20, 10), 0).total.dense


def test_frozen_parameter_has_neither_gradient_nor_state():
    count = memory(nn.Linear(20, 10).requires_grad_(False)).total.dense
    assert (count.parameters, count.gradients, count.optimizer_state) == (840, 0, 0)


def test_optimizer_of_other_parameters_is_named():
    net = sparsify(nn.Linear(20, 10), sparsity=0.9)
    with pytest.raises(ValueError, match="`optimizer` does not train weight"):
        memory(net, torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def test_optimizer_that_cannot_be_asked_is_named():
    net = nn.Linear(20, 10)
    with pytest.raises(ValueError, match="the state that LBFGS makes is not known before its first step"):
        memory(net, torch.optim.LBFGS(net.parameters()))


def test_tables_have_a_row_a_weight_and_a_total():
    net = sparsify(nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5)), sparsity=0.8)
    table = flop_table(flops(net, torch.zeros(1, 20))).splitlines()
    assert [line.split()[0] for line in table] == ["weight", "0.weight", "1.weight", "total", "training"]
    assert table[3].split() == ["total", "1,500", "300", "20.0", "%", "150", "750"]
    table = byte_table(memory(net)).splitlines()
    assert [line.split()[0] for line in table] == ["weight", "0.weight", "1.weight", "other", "total"]
    assert table[-1].split()[-2:] == ["49.0", "%"]  # 4,620 of 9,420


@pytest.mark.parametrize("states", [1, 2])
def test_inspect_with_a_configuration_adds_what_the_masks_cost(tmp_path, capsys, states):
    net = sparsify(Classifier(ResNet20()), sparsity=0.9, distribution="uniform")
    state = {index: torch.zeros(2) for index in range(states)} | {"step": torch.tensor(1.0)}
    saved = {"state_dict": net.state_dict(), "optimizer_states": [{"state": {0: state}}]}
    torch.save(saved, tmp_path / "run.ckpt")
    main(["inspect", str(tmp_path / "run.ckpt"), "--config", "digits", "--trainer.accelerator", "cpu"])
    _, operations, held = capsys.readouterr().out.rstrip().split("\n\n")
    assert operations == flop_table(flops(net, torch.zeros(1, 1, 8, 8)))
    assert held == byte_table(memory(net, states))


def test_inspect_takes_masks_and_optimizer_from_the_checkpoint_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config", "digits", "--trainer.accelerator", "cpu"]
    main(["fit", *config, "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"])
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    capsys.readouterr()
    main(["inspect", str(checkpoint), *config])
    _, operations, held = capsys.readouterr().out.rstrip().split("\n\n")
    # The first convolution keeps all of its 144 weights: a mask that zeros alone would not show.
    first, second = (line.split() for line in operations.splitlines()[1:3])
    assert first == ["network.layers.0.weight", "18,432", "18,432", "100.0", "%", "144", "144"]
    assert second[:2] == ["network.layers.3.conv1.weight", "294,912"]
    assert float(second[3]) < 100
    momentum = held.splitlines()[-1].split()
    assert momentum[1] == momentum[2] == momentum[3]


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_inspect_opens_the_file_once(tmp_path, capsys, suffix):
    net, path = sparsify(Classifier(ResNet20()), sparsity=0.9), tmp_path / f"run.{suffix}"
    save = torch.save if suffix == "ckpt" else save_file
    save(dict(net.state_dict()), str(path))
    with opens() as opened:
        main(["inspect", str(path), "--config", "digits", "--trainer.accelerator", "cpu"])
    assert opened.count(str(path)) == 1
    assert len(capsys.readouterr().out.split("\n\n")) == 3


@pytest.mark.parametrize(
    ("states", "text"),
    [
        (3, "['optimizer_states'] is 3, not list"),
        ([{}], "['optimizer_states'][0] has no 'state'"),
        ([{"state": {0: 1}}], "['optimizer_states'][0]['state'][0] is 1, not dict"),
    ],
)
def test_inspect_names_what_is_wrong_with_the_state_of_the_optimizer(tmp_path, capsys, states, text):
    net = sparsify(Classifier(ResNet20()), sparsity=0.9)
    torch.save({"state_dict": net.state_dict(), "optimizer_states": states}, tmp_path / "run.ckpt")
    main(["inspect", str(tmp_path / "run.ckpt")])  # the table of the layers does not need it
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "run.ckpt"), "--config", "digits", "--trainer.accelerator", "cpu"])
    assert text in capsys.readouterr().err


def test_inspect_names_a_model_that_does_not_fit(tmp_path, capsys):
    torch.save({"fc.weight": torch.eye(4)}, tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "other.pt"), "--config", "digits"])
    assert "has a mask of fc.weight, but the model of `--config` has no such weight" in capsys.readouterr().err


def test_inspect_refuses_options_of_no_configuration(tmp_path, capsys):
    torch.save({"fc.weight": torch.eye(4)}, tmp_path / "file.pt")
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "file.pt"), "--seed", "1"])
    assert "unrecognized arguments: --seed 1" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layer_counts_each_weight_once_a_token(kind):
    net = sparsify(kind(20, 16), sparsity=0.9)
    for row in flops(net, torch.randn(7, 3, 20)).layers:
        weight = net.get_parameter(f"parametrizations.{row.name}.original0")
        assert (row.dense, row.sparse) == (2 * 21 * getattr(net, row.name).numel(), 2 * 21 * len(weight))


def test_experts_count_the_tokens_that_chose_them():
    net = sparsify(mixtral(), sparsity=0.0)
    rows = {row.name.rpartition(".")[2]: row.dense for row in flops(net, torch.arange(12).view(1, 12)).layers}
    chosen = 12 * net.config.num_experts_per_tok
    assert (rows["gate_up_proj"], rows["down_proj"]) == (2 * chosen * 16 * 64, 2 * chosen * 32 * 16)
