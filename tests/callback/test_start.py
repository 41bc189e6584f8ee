"""How a fit starts: masks, signs and magnitudes from files, flipped signs, resuming."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_signin import SignInCallback, effective_weights, masks
from lightning_signin.export import write_safetensors
from lightning_signin.masks import NM, SNIP, NMCap, Task
from lightning_signin.weightfiles.saved import read_weights
from tests.resuming import SaveEverywhere
from tests.small import Counted, Small, callback, copies, differing, loader, seeded, trainer


class Started(Callback):
    """Notes masks and weights at the start of a fit."""

    def on_fit_start(self, trainer, module):
        self.masks = masks(module)
        self.weights = {name: weight.clone() for name, weight in effective_weights(module).items()}


def start_of(module: Small, **options) -> Started:
    started = Started()
    trainer(callback(**options), started, epochs=1, limit_train_batches=1).fit(module, loader())
    return started


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The files of an earlier fit."""
    folder = tmp_path_factory.mktemp("earlier")
    module, sign_in = seeded(seed=7), callback(seed=5)
    trainer(sign_in, SaveEverywhere(folder), epochs=2).fit(module, loader())
    shutil.copy(folder / "epoch1.ckpt", folder / "run.ckpt")
    weights = read_weights(module)
    weights.describe(sign_in.state_dict())
    write_safetensors(weights, folder / "run.safetensors")
    torch.save(module.state_dict(), folder / "run.pt")
    return folder


FILES = ["run.ckpt", "step7.ckpt", "run.safetensors", "run.pt"]


@pytest.mark.parametrize("flip", [0.0, 0.05])
@pytest.mark.parametrize("given", ["m", "s", "a", "ms", "ma", "sa", "msa"])
@pytest.mark.parametrize("file", FILES)
def test_start_is_joined_from_its_sources_entry_by_entry(earlier, file, given, flip):
    """Among them "ms",  Table 1's learned mask and learned signs with random magnitudes."""
    source = read_weights(earlier / file).tensors
    named = {"m": "mask_from", "s": "signs_from", "a": "magnitudes_from"}
    options = {named[letter]: earlier / file for letter in given} | {"flip_signs": flip, "seed": 3}
    own = copies(seeded(seed=2))
    started = start_of(seeded(seed=2), **options, **({"sparsity": None} if "m" in given else {}))
    flips = 0
    for name, weight in started.weights.items():
        mask, theirs = started.masks[name], source[name]
        if "m" in given:
            assert torch.equal(mask, theirs != 0)
        sign = torch.where(theirs != 0, theirs, own[name]).sign() if "s" in given else own[name].sign()
        size = torch.where(theirs != 0, theirs, own[name]).abs() if "a" in given else own[name].abs()
        torch.testing.assert_close(weight.abs(), size * mask, rtol=1e-5, atol=1e-7)
        flips += int((weight.sign() != sign)[mask].sum())
        assert not weight[~mask].any()
    assert flips == round(flip * 373)
    assert sum(int(mask.sum()) for mask in started.masks.values()) == 373


def test_mask_from_a_file_must_have_the_sparsity_that_is_asked_for(earlier):
    started = start_of(seeded(), sparsity=0.7, mask_from=earlier / "run.ckpt")
    assert sum(int(mask.sum()) for mask in started.masks.values()) == 373
    text = r"keeps 373 of 1242 weights, a sparsity of 0.6997, but `sparsity`=0.9 asks for 124. Leave out `sparsity`"
    with pytest.raises(ValueError, match=text):
        start_of(seeded(), sparsity=0.9, mask_from=earlier / "run.ckpt")


def test_resume_needs_no_source_again(tmp_path, earlier):
    for file in FILES:
        shutil.copy(earlier / file, tmp_path / file)
    options = {"sparsity": None, "mask_from": tmp_path / "run.ckpt", "flip_signs": 0.1, "seed": 3}
    options |= {"signs_from": tmp_path / "run.safetensors", "magnitudes_from": str(tmp_path / "run.pt")}
    whole = seeded()
    trainer(callback(**options), SaveEverywhere(tmp_path)).fit(whole, loader())
    for file in FILES:
        (tmp_path / file).unlink()
    torch.manual_seed(99)
    again = Small()
    trainer(callback(**options)).fit(again, loader(), ckpt_path=tmp_path / "step25.ckpt")
    assert differing(copies(whole), copies(again)) == []


CALLS: list[str] = []


def counted(task: Task) -> dict[str, Tensor]:
    CALLS.append("scored")
    gradients = task.mean_gradients(task.weights, task.batches(1))
    return {name: gradient.abs() for name, gradient in gradients.items()}


@pytest.mark.parametrize("kind", ["name", "object", "path"])
def test_resume_scores_nothing_and_equals_uninterrupted(tmp_path, kind):
    mask = {"name": "snip", "object": SNIP(num_batches=2), "path": "tests.callback.test_start.counted"}
    CALLS.clear()
    whole = seeded()
    trainer(callback(mask=mask[kind]), SaveEverywhere(tmp_path)).fit(whole, DataLoader(Counted(), 8, shuffle=True))
    assert len(CALLS) == (kind == "path")
    torch.manual_seed(99)
    again, samples = Small(), Counted()
    with torch.no_grad():
        again.fc1.weight.zero_()  # would be scored otherwise
    resumed = trainer(callback(mask=mask[kind]))
    resumed.fit(again, DataLoader(samples, 8, shuffle=True), ckpt_path=tmp_path / "epoch1.ckpt")
    assert differing(copies(whole), copies(again)) == []
    assert samples.drawn == 2 * 80
    assert len(CALLS) == (kind == "path")
    saved = torch.load(tmp_path / "epoch1.ckpt", weights_only=True)
    arguments = next(state["arguments"] for state in saved["callbacks"].values() if "arguments" in state)
    assert arguments["mask"] == (repr(mask[kind]) if kind == "object" else mask[kind])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_resume_in_another_precision_equals_uninterrupted(tmp_path, precision):
    whole, again = seeded(), Small()
    trainer(callback(mask="snip"), SaveEverywhere(tmp_path), precision=precision).fit(whole, loader())
    trainer(callback(mask="snip"), precision=precision).fit(again, loader(), ckpt_path=tmp_path / "step25.ckpt")
    assert differing(copies(whole), copies(again)) == []


def test_second_fit_goes_on_with_the_mask_without_scoring():
    CALLS.clear()
    module, sign_in, first, second = seeded(), callback(mask=counted), Started(), Started()
    trainer(sign_in, first, epochs=1).fit(module, loader())
    trainer(sign_in, second, epochs=1).fit(module, loader())
    assert CALLS == ["scored"]
    assert differing(first.masks, second.masks) == []


@pytest.mark.parametrize(
    ("first", "second", "text"),
    [
        ({"mask": SNIP(2)}, {"mask": SNIP(3)}, r"mask='SNIP\(num_batches=2\)', but this callback has mask"),
        ({"structure": "1:2-cap"}, {"structure": "unstructured"}, "structure='1:2-cap', but this callback has"),
        ({"structure": NMCap(1, 2)}, {"structure": NMCap(1, 3)}, r"NMCap\(\{'n': 1, 'm': 2\}\)"),
        ({"flip_signs": 0.1}, {"flip_signs": 0.2}, "flip_signs=0.1, but this callback has flip_signs=0.2"),
        ({"signs_from": "run.pt"}, {}, "signs_from='.*run.pt', but this callback has signs_from=None"),
        ({"magnitudes_from": "run.pt"}, {}, "magnitudes_from='.*run.pt', but this callback has magnitudes_from=None"),
        ({"sparsity": None, "mask_from": "run.pt"}, {"sparsity": None}, "mask_from='.*run.pt', but this callback"),
        (
            {"sparsity": None, "distribution": {"conv*": 0.5, "*": 0.7}},
            {"sparsity": None, "distribution": {"conv*": 0.5, "*": 0.8}},
            "distribution=.*0.7.*this callback has distribution=.*0.8",
        ),
    ],
    ids=["mask", "structure", "structure object", "flip_signs", "signs", "magnitudes", "mask_from", "distribution"],
)
def test_resume_with_other_arguments_is_refused(tmp_path, earlier, first, second, text):
    first = {name: earlier / value if name.endswith("_from") else value for name, value in first.items()}
    runner = trainer(callback(**first), epochs=1)
    runner.fit(seeded(), loader())
    runner.save_checkpoint(tmp_path / "run.ckpt")
    torch.load(tmp_path / "run.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=text):
        trainer(callback(**second), epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "run.ckpt")
    trainer(callback(**first), epochs=2).fit(seeded(), loader(), ckpt_path=tmp_path / "run.ckpt")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask": "snip"}, "reads the whole mask from a file: leave out `mask`"),
        ({"mask": SNIP()}, "reads the whole mask from a file: leave out `mask`"),
        ({"distribution": "erk"}, "leave out `mask`, `distribution`"),
        ({"structure": "2:4"}, "leave out `mask`, `distribution` and `structure`"),
    ],
    ids=["name", "score", "distribution", "structure"],
)
def test_mask_from_a_file_excludes_what_makes_masks(options, text):
    with pytest.raises(ValueError, match=text):
        SignInCallback(mask_from="x.pt", **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"flip_signs": 5}, r"`flip_signs` must be in \[0, 1\], got 5. Pass the share, e.g. 0.05"),
        ({"flip_signs": float("nan")}, "`flip_signs` must be in"),
        ({"structure": "3:2"}, "'3:2' must keep 1 to 2 of each 2"),
        ({"structure": {"*": "2by4"}}, "`structure` must be 'unstructured', 'n:m'"),
        ({"mask": SNIP, "distribution": {"*": 2.0}}, r"`distribution\['\*'\]` must be in \[0, 1\)"),
        ({"sparsity": 0.5, "distribution": {"*": 0.5}}, "`sparsity` must be left out where `distribution` gives it"),
    ],
    ids=str,
)
def test_bad_start_is_refused_at_once(options, text):
    with pytest.raises(ValueError, match=text):
        SignInCallback(**options)


def test_number_to_base_60_is_the_structure_that_yaml_made_it_of():
    assert SignInCallback(structure=2 * 60 + 4).arguments.structure == "2:4"
    assert SignInCallback(structure={"*": 16 * 60 + 32}).arguments.structure == {"*": "16:32"}
    assert isinstance(SignInCallback(structure=NM(2, 4)).arguments.structure, NM)
