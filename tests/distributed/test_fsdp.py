"""FSDP2 on two gloo ranks: as under DDP, plain files, exact resuming, and what is refused before training."""

import pytest
import torch

from lightning_signin.cli import main
from lightning_signin.weightfiles.files.safe import read_safetensors
from lightning_signin.weightfiles.saved import read_weights
from tests.fsdp_run import VARIANTS, Blocks, seeded
from tests.ranks import run_ranks
from tests.small import callback, copies, differing, loader, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fsdp")
    run_ranks("tests.fsdp_run", path, timeout=600)
    return path


@pytest.fixture(scope="module")
def found(folder):
    return torch.load(folder / "found.pt", weights_only=True)


every_variant = pytest.mark.parametrize("name", VARIANTS)


@every_variant
def test_sharded_run_equals_that_of_ddp(name, found):
    sharded, ddp = found[name]["sharded"], found[name]["ddp"]
    assert list(sharded["state"]) == list(ddp["state"])
    for key, value in sharded["state"].items():
        torch.testing.assert_close(value, ddp["state"][key], rtol=1e-4, atol=1e-6)
    assert sharded["logged"] == pytest.approx(ddp["logged"], rel=1e-4)
    assert sharded["logged"]["signin/sign_flips"] > 0


def test_a_rank_holds_its_half_of_factors_and_optimizer_state(found):
    for name, states in (("compact", 1), ("dense", 2)):
        sharded = found[name]["sharded"]
        for factor, held in zip(sharded["factors"], sharded["held"], strict=True):
            half = -(-len(factor) // 2) * factor[0].numel()
            assert held == [half] * (1 + states)


@every_variant
def test_optimizer_groups_are_made_of_plain_names_and_shapes(name, found):
    plain = [(name, parameter.ndim) for name, parameter in Blocks().named_parameters()]
    assert found[name]["sharded"]["seen"] == found[name]["ddp"]["seen"] == plain


@every_variant
def test_checkpoint_of_one_file_is_plain_and_sparse(name, found, folder):
    saved = torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]
    module = Blocks()
    module.load_state_dict(saved, strict=True)
    assert differing(copies(module), found[name]["sharded"]["state"]) == []
    for weight, effective in found[name]["effective"].items():
        assert torch.equal(saved[weight], effective)
    assert sum(int(saved[weight].count_nonzero()) for weight in found[name]["effective"]) == round(0.3 * 1378)


@every_variant
def test_resume_equals_uninterrupted(name, found):
    whole, resumed = found[name]["sharded"], found[name]["resumed"]
    assert differing(whole["state"], resumed["state"]) == []
    assert len(whole["factors"]) == len(resumed["factors"])
    assert all(map(torch.equal, whole["factors"], resumed["factors"]))


def test_a_hook_that_lists_parameters_is_told_once_that_they_are_factors(found):
    for name, times in (("compact", 1), ("dense", 0)):  # whose hooks list weights in a plain view
        said = [message for message in found[name]["warned"] if "their values are not weights" in message]
        assert len(said) == times


def test_fit_ends_sparse_and_says_how_to_merge(found):
    assert found["compact"]["tested"]["val_loss"] == pytest.approx(found["compact"]["sharded"]["logged"]["val_loss"])
    said = [message for message in found["compact"]["warned"] if "was not merged and stays sparse" in message]
    assert len(said) == 1
    assert "lightning-signin export sparse.ckpt --to ckpt" in said[0]


def test_command_in_the_errors_merges_the_checkpoint(found, folder):
    main(["export", str(folder / "compact.ckpt"), "--to", "ckpt", "--output", str(folder / "merged.ckpt")])
    merged = torch.load(folder / "merged.ckpt", weights_only=True)["state_dict"]
    assert differing(merged, found["compact"]["sharded"]["state"]) == []
    assert sum(read_weights(folder / "compact.ckpt").kept.values()) == round(0.3 * 1378)


def test_fit_exports_the_whole_weights(found, folder):
    tensors, _ = read_safetensors((folder / "compact" / "merged.safetensors").read_bytes(), "merged")
    assert {name: found["compact"]["sharded"]["state"][name].equal(tensors[name]) for name in tensors} == dict.fromkeys(
        found["compact"]["sharded"]["state"], True
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("folders", ("save_distributed_checkpoint=False", "`lightning-signin export CHECKPOINT --to ckpt`")),
        (
            "merge",
            ("sharded over ranks, and cannot be merged in place", "`lightning-signin export sparse.ckpt --to ckpt`"),
        ),
        (
            "sharded before",
            ("net.0.1.weight is sharded over ranks already", "    sparsify(self.net", "    fully_shard(self"),
        ),
        ("masks that move", ("RigL does not move masks that `configure_model` has made",)),
        ("sharpness", ("`sharpness_every_n_epochs` measures on a copy",)),
        ("mask", ("`mask`='snip' of SignInCallback has no effect", "Pass it there")),
        ("sparsity", ("kept 413 of 1378 weights", "asks for 138")),
        ("parametrization", ("`parametrization`='plain' of SignInCallback is not that of net.0.1.weight",)),
        ("other masks", ("The ranks have chosen different masks in `configure_model`",)),
        ("a folder to resume", ("is a folder of shards", "save_distributed_checkpoint=False")),
        ("a dense checkpoint", ("was not written by a run with SignInCallback",)),
        ("other names", ("norm.bias is only in the model. Resume with the model of the run",)),
        ("another number", ("factors of net.1.1.weight have shape (323,)", "Give `sparsify` the arguments of the run")),
        ("another storage", ("which is sharded, have shape (23, 56)", "Give `sparsify` the arguments of the run")),
    ],
)
def test_what_cannot_work_is_refused_on_all_ranks(case, words, found):
    for word in words:
        for rank in found["refused"]:
            assert word in rank[case]


def test_fit_that_fails_leaves_a_sparse_module_and_can_be_resumed(found):
    assert found["interrupted"]["sparse"] == 3
    assert found["interrupted"]["resumed"]["logged"]["signin/sparsity"] == pytest.approx(0.7, abs=1e-3)


def test_folder_of_shards_cannot_be_exported_and_says_what_to_do(folder, capsys):
    with pytest.raises(SystemExit):
        main(["export", str(folder / "shards")])
    assert "python -m lightning.pytorch.utilities.consolidate_checkpoint" in capsys.readouterr().err


def test_loop_without_lightning_equals_one_process(found):
    one, two = found["by hand"]["one"], found["by hand"]["two"]
    for key in ("trained", "loaded"):
        assert list(one[key]) == list(two[key])
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, rtol=1e-4, atol=1e-6)
    for name, value in two["trained"].items():
        torch.testing.assert_close(two["loaded"][name], value, rtol=1e-6, atol=1e-7)


def test_plain_view_reads_and_writes_whole_weights(found):
    """As in one process; the whole network stays below the limit, and what was below it keeps its factors."""
    one, two = found["viewed"]["one"], found["viewed"]["two"]
    for shown, expected in zip(two["shown"], one["shown"], strict=True):
        assert sorted(shown) == sorted(expected)
        for name, value in expected.items():
            torch.testing.assert_close(shown[name], value, rtol=1e-4, atol=1e-6)
    assert two["kept"] == one["kept"]
    assert 0 < sum(two["kept"]) < 4 * 413  # two factors of 413 weights, twice
    assert two["trained"] == one["trained"] == [True, False, True]
    for name, value in one["clipped"].items():
        torch.testing.assert_close(two["clipped"][name], value, rtol=1e-4, atol=1e-6)
        assert value.abs().max() <= 0.2 + 1e-6


def test_plain_view_in_hooks_of_a_sharded_fit_equals_that_of_ddp(found):
    sharded, ddp = found["clipped"]["sharded"], found["clipped"]["ddp"]
    for name, value in ddp.items():
        torch.testing.assert_close(sharded[name], value, rtol=1e-4, atol=1e-6)
        if "running" not in name:
            assert value.abs().max() <= 0.15 + 1e-6


def test_on_one_device_a_module_sparse_already_is_adopted_and_merged(tmp_path):
    ends = []
    for sparse, options in ((True, {"sparsity": None}), (False, {"sparsity": 0.7, "seed": 3})):
        module = seeded(sparse=sparse)
        runner = trainer(callback(**options), epochs=2)
        runner.fit(module, loader())
        assert [name for name, _ in module.named_parameters()] == [name for name, _ in Blocks().named_parameters()]
        ends.append(copies(module))
    assert differing(*ends) == []
