"""Iterative magnitude pruning against a slow loop of plain fits, and interrupted against uninterrupted."""

import gc
import logging
import random
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader

from lightning_signin import IterativePruning, SignInCallback, masks_from_file
from lightning_signin.cli.main import main
from lightning_signin.cli.prune import arguments_for_pruning
from lightning_signin.iterative.folder import Folder
from lightning_signin.iterative.levels import Levels
from tests.ranks import run_ranks
from tests.small import BATCH, Small, copies, data, differing, loader, seeded, trainer

EPOCHS, BATCHES, SIZE = 2, 5, 18 + 48 * 24 + 24 * 3
WEIGHTS = ["conv.weight", "fc1.weight", "fc2.weight"]
SPARSITY, RATE, LAST = 0.7, 0.5, 2
KEPT = [SIZE, SIZE // 2, round(Fraction(3, 10) * SIZE)]
FACTORS = {"rescale_every_n_epochs": 1, "rescale_until": 1.0, "frobenius_decay": 1e-3}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Checking that a mask is connected collects garbage: not through all that was imported, a quarter of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class At(Callback):
    """Stops a fit with an exception: at a batch, or after all epochs."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("power cut")

    def on_train_end(self, *_):
        if self.step is None:
            raise RuntimeError("power cut")


class Trainers:
    """Makes the trainers of the levels, and says which level is cut short."""

    def __init__(self, cut: dict[int, int | None] | None = None, epochs: int = EPOCHS, *extra: Callback) -> None:
        self.cut, self.epochs, self.extra, self.made = cut or {}, epochs, extra, []

    def __call__(self, callbacks: list[Callback]) -> Trainer:
        level = len(self.made)
        cut = [At(self.cut[level])] if level in self.cut else []
        options = {"epochs": self.epochs, "limit_train_batches": BATCHES, "enable_checkpointing": True}
        self.made.append(trainer(*self.extra, *cut, *callbacks, **options))
        return self.made[-1]


def pruning(folder: Path, form: str = "sign-in", **options: object) -> IterativePruning:
    sign_in = {"parametrization": form, **FACTORS}
    return IterativePruning(folder, **{"sparsity": SPARSITY, "prune_rate": RATE, "sign_in": sign_in, **options})


def pruned(folder: Path, optimizer: str = "SGD", form: str = "sign-in", **options: object) -> dict:
    module = seeded(optimizer, epochs=EPOCHS)
    pruning(folder, form, **options).fit(Trainers(), module, loader())
    return copies(module)


def kept(folder: Path, level: int) -> dict:
    return torch.load(folder / f"level-{level:02}.mask.pt", weights_only=True)


def count(masks: dict) -> int:
    return sum(int(mask.sum()) for mask in masks.values())


class FirstEpoch(Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 0:
            self.weights = copies(module)


def largest(weights: dict, masks: dict, number: int) -> dict:
    """Weights one by one, sorted by magnitude."""
    every = [
        (-abs(value), name, index)
        for name in WEIGHTS
        for index, value in enumerate(weights[name].flatten().tolist())
        if masks[name].flatten()[index]
    ]
    chosen = {(name, index) for _, name, index in sorted(every, key=lambda entry: entry[0])[:number]}
    return {
        name: torch.tensor([(name, index) in chosen for index in range(weights[name].numel())]).view_as(weights[name])
        for name in WEIGHTS
    }


def reference(folder: Path, optimizer: str, form: str, rewind: str) -> dict:
    """Plain fits, one after the other."""
    module = seeded(optimizer, epochs=EPOCHS)
    start, generator = copies(module), torch.Generator()
    generator.set_state(torch.get_rng_state())
    root = int(torch.randint(2**63 - 1, (), generator=generator))
    first = FirstEpoch()
    limits = {"epochs": EPOCHS, "limit_train_batches": BATCHES}
    trainer(SignInCallback(sparsity=0.0, parametrization=form, **FACTORS), first, **limits).fit(module, loader())
    masks = {name: torch.ones_like(start[name], dtype=torch.bool) for name in WEIGHTS}
    for level in range(1, LAST + 1):
        end = copies(module)
        masks = largest(end, masks, KEPT[level])
        torch.save(masks, folder / "mask.pt")
        module = Small(optimizer, EPOCHS)
        module.load_state_dict({"lrr": end, "imp": start, "wr": first.weights}[rewind])
        seed = int(np.random.SeedSequence([root, level]).generate_state(1)[0])
        for seed_generator in (torch.manual_seed, np.random.seed, random.seed):
            seed_generator(seed)
        sparse = SignInCallback(mask_from=folder / "mask.pt", parametrization=form, **FACTORS)
        trainer(sparse, **limits).fit(module, loader())
    return copies(module)


@pytest.mark.parametrize("form", ["sign-in", "plain"])
@pytest.mark.parametrize(
    ("rewind", "optimizer", "options"),
    [("lrr", "SGD", {}), ("imp", "SGD", {}), ("wr", "SGD", {"rewind_epoch": 1}), ("lrr", "AdamW", {})],
)
def test_levels_are_plain_fits(tmp_path, form, rewind, optimizer, options):
    expected = reference(tmp_path, optimizer, form, rewind)
    assert differing(expected, pruned(tmp_path / "run", optimizer, form, rewind=rewind, **options)) == []


def test_levels_keep_a_share_of_the_one_before():
    levels = Levels(sparsity=0.9, prune_rate=0.2)
    found = [levels.sparsity_at(level) for level in range(levels.last + 1)]
    assert found == [float(1 - Fraction(4, 5) ** level) for level in range(11)] + [0.9]
    assert Levels(sparsity=0.75, prune_rate=0.5).last == 2
    assert Levels(sparsity=0.0).last == 0


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk", "balanced"])
def test_masks_have_exact_counts_and_lie_in_each_other(distribution):
    torch.manual_seed(1)
    shapes = {"a": (30, 40), "b": (7, 5), "c": (20, 3, 3, 3)}
    levels = Levels(sparsity=0.93, prune_rate=0.3, distribution=distribution)
    choice = levels.choice(shapes, transposed=())
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    size = count(masks)
    for level in range(1, levels.last + 1):
        before, masks = masks, levels.masks(level, choice, {n: torch.randn(s) for n, s in shapes.items()}, masks)
        density = max(Fraction(7, 10) ** level, Fraction(7, 100))
        assert count(masks) == round(density * size)
        assert not any((mask & ~before[name]).any() for name, mask in masks.items())


def test_layer_never_gets_more_than_it_had():
    shapes = {
        str(size): (size, 1) for size in (15, 28, 3, 5, 27)
    }  # the sixth level keeps 1 of 3, rounding at the next 2
    levels = Levels(sparsity=0.6, prune_rate=0.1, distribution="uniform")
    choice = levels.choice(shapes, transposed=())
    masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for level in range(1, levels.last + 1):
        before, masks = masks, levels.masks(level, choice, {n: torch.randn(s) for n, s in shapes.items()}, masks)
        assert not any((mask & ~before[name]).any() for name, mask in masks.items())


def test_files_and_log_of_the_levels(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="lightning_signin")
    weights = pruned(tmp_path)
    assert [record.message for record in caplog.records if record.name == "lightning_signin"] == [
        "Level 0 of 2: sparsity 0.0000",
        "Level 1 of 2: sparsity 0.5000",
        "Level 2 of 2: sparsity 0.7000",
    ]
    names = [f"level-0{level}.{kind}" for level in range(LAST + 1) for kind in ("ckpt", "mask.pt")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "start.ckpt"]
    assert [count(kept(tmp_path, level)) for level in range(LAST + 1)] == KEPT
    saved = torch.load(tmp_path / "level-02.ckpt", weights_only=True)
    assert differing(weights, saved["state_dict"]) == []
    assert saved["global_step"] == EPOCHS * BATCHES
    for level in (1, 2):
        for name, mask in masks_from_file(tmp_path / f"level-0{level}.ckpt").items():
            assert torch.equal(mask, kept(tmp_path, level)[name])
            assert not (mask & ~kept(tmp_path, level - 1)[name]).any()
    assert all(not weights[name][~mask].any() for name, mask in kept(tmp_path, 2).items())


@pytest.mark.parametrize(("structure", "sparsity"), [("1:4", 0.75), ("2:4-cap", 0.7)])
def test_last_mask_has_the_structure(tmp_path, structure, sparsity):
    sign_in = {"exclude": ["conv.weight"]}
    pruned(tmp_path, structure=structure, sparsity=sparsity, sign_in=sign_in)
    masks = kept(tmp_path, LAST)
    assert count(masks) == round((1 - Fraction(str(sparsity))) * (SIZE - 18))
    groups = torch.cat([mask.unflatten(1, (-1, 4)).sum(-1).flatten() for mask in masks.values()])
    assert int(groups.max()) == int(structure[0])
    assert int(groups.min()) == (1 if structure == "1:4" else 0)
    assert count(kept(tmp_path, 1)) == (SIZE - 18) // 2


def cut_and_resumed(folder: Path, cut: tuple[int, int | None], optimizer: str, form: str, **options: object) -> dict:
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(folder, form, **options).fit(Trainers(dict([cut])), seeded(optimizer, epochs=EPOCHS), loader())
    torch.manual_seed(99)  # nothing of the interrupted process is left
    module = Small(optimizer, EPOCHS)
    trainers = Trainers()
    pruning(folder, form, **options).fit(trainers, module, loader())
    assert len(trainers.made) == LAST + 1 - cut[0]
    return copies(module)


RUNS = {
    "SGD": {"optimizer": "SGD", "form": "sign-in", "rewind": "wr", "rewind_epoch": 1},
    "AdamW": {"optimizer": "AdamW", "form": "sign-in"},
    "plain": {"optimizer": "SGD", "form": "plain", "rewind": "imp"},
}


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory):
    run = RUNS[request.param]
    return pruned(tmp_path_factory.mktemp("whole"), **run), run


@pytest.fixture(scope="module")
def lrr(tmp_path_factory):
    return pruned(tmp_path_factory.mktemp("lrr"))


CUTS = [(0, 3), (0, 7), (0, None), (1, 0), (1, 7), (2, 3), (2, None)]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"level {cut[0]} at {cut[1] if cut[1] is not None else 'end'}")
@pytest.mark.parametrize("whole", RUNS, indirect=True, ids=RUNS)
def test_resumed_equals_uninterrupted(tmp_path, whole, cut):
    weights, run = whole
    assert differing(weights, cut_and_resumed(tmp_path, cut, **run)) == []


def own_generator() -> DataLoader:
    return DataLoader(data(), BATCH, shuffle=True, generator=torch.Generator().manual_seed(5))


def test_resumed_loader_with_its_own_generator_equals_uninterrupted(tmp_path):
    whole = seeded(epochs=EPOCHS)
    pruning(tmp_path / "whole").fit(Trainers(), whole, own_generator())
    again = seeded(epochs=EPOCHS)
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path / "cut").fit(Trainers({1: 0}), again, own_generator())
    pruning(tmp_path / "cut").fit(Trainers(), again, own_generator())
    assert differing(copies(whole), copies(again)) == []


def test_resumed_run_that_stops_early_equals_uninterrupted(tmp_path):
    def stopping() -> EarlyStopping:
        return EarlyStopping("val_loss", patience=1, min_delta=9.0)  # after the second of four epochs

    data_of_both = loader(), DataLoader(data(), 16)
    whole = seeded(epochs=4)
    levels = Trainers(None, 4, stopping())
    pruning(tmp_path / "whole", sparsity=0.0).fit(levels, whole, *data_of_both)
    assert levels.made[0].current_epoch == 2
    again = seeded(epochs=4)
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path / "cut", sparsity=0.0).fit(Trainers({0: None}, 4, stopping()), again, *data_of_both)
    pruning(tmp_path / "cut", sparsity=0.0).fit(Trainers(None, 4, stopping()), again, *data_of_both)
    assert differing(copies(whole), copies(again)) == []


def test_finished_folder_gives_its_weights_at_once(tmp_path):
    weights, module, trainers = pruned(tmp_path), Small(), Trainers()
    pruning(tmp_path).fit(trainers, module, loader())
    assert (differing(weights, copies(module)), trainers.made) == ([], [])


def test_folder_can_move(tmp_path, lrr):
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path / "here").fit(Trainers({1: 7}), seeded(epochs=EPOCHS), loader())
    (tmp_path / "here").rename(tmp_path / "there")
    module = Small(epochs=EPOCHS)
    pruning(tmp_path / "there").fit(Trainers(), module, loader())
    assert differing(lrr, copies(module)) == []


class Late(Small):
    """Builds a layer when Lightning asks for it."""

    def __init__(self) -> None:
        super().__init__("SGD", EPOCHS)
        self.fc1 = None

    def configure_model(self):
        if self.fc1 is None:
            self.fc1 = nn.Linear(48, 24)


def test_resumed_model_that_is_built_late_equals_uninterrupted(tmp_path):
    seeded()
    whole = Late()
    pruning(tmp_path / "whole", rewind="imp").fit(Trainers(), whole, loader())
    seeded()
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path / "cut", rewind="imp").fit(Trainers({1: 0}), Late(), loader())
    again = Late()
    pruning(tmp_path / "cut", rewind="imp").fit(Trainers(), again, loader())
    assert differing(copies(whole), copies(again)) == []
    with pytest.raises(ValueError, match=r"level-02.ckpt do not fit the module: fc1.weight .*none in"):
        pruning(tmp_path / "cut", rewind="imp").fit(Trainers(), Late(), loader())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sparsity": 90}, "`sparsity` must be in [0, 1), got 90"),
        ({"prune_rate": 1.0}, "`prune_rate` must be in (0, 1), got 1.0. Pass the share that goes, e.g. 0.2."),
        ({"prune_rate": True}, "`prune_rate` must be in (0, 1), got True"),
        ({"rewind": "late"}, "`rewind` must be one of 'lrr', 'wr', 'imp'; got 'late'"),
        ({"rewind": "wr"}, "`rewind_epoch` must be an integer of at least 1 for rewind='wr', got None"),
        ({"rewind": "wr", "rewind_epoch": 0}, "got 0. E.g. rewind_epoch=2."),
        ({"rewind_epoch": 2}, "`rewind_epoch`=2 has no part in rewind='lrr'. Leave it out."),
        ({"distribution": "even"}, "`distribution` must be one of 'balanced', 'uniform', 'erk', 'global'; got 'even'"),
        ({"distribution": {"*": 0.5}}, "`distribution` must be one of"),
        ({"structure": "5:4"}, "`structure` '5:4' must keep 1 to 4"),
        ({"sign_in": {"mask": "snip"}}, "`sign_in` must not have 'mask': IterativePruning decides it"),
        ({"sign_in": {"sparsity": 0.5}}, "`sign_in` must not have 'sparsity'"),
        ({"sign_in": {"beta": -1}}, "beta"),
        ({"sign_in": {"parametrization": "str"}}, "parametrization='str' makes zeros by itself"),
    ],
    ids=str,
)
def test_bad_argument_is_refused(tmp_path, options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        IterativePruning(tmp_path, **options)


def test_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"`folder` must be a folder, and .*file is a file. Choose another name."):
        IterativePruning(tmp_path / "file")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(folder).fit(Trainers({0: 3}), seeded(), loader())
    return folder


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prune_rate": 0.3}, "was begun with prune_rate=0.5, and here it is 0.3. Pass prune_rate=0.5 to go on"),
        ({"sparsity": 0.8}, "begun with sparsity=0.7, and here it is 0.8"),
        ({"rewind": "imp"}, "begun with rewind='lrr', and here it is 'imp'"),
        ({"structure": "2:4-cap"}, "begun with structure='unstructured'"),
        ({"form": "plain"}, "begun with parametrization='sign-in', and here it is 'plain'"),
        ({"sign_in": {**FACTORS, "frobenius_decay": 0.1}}, "begun with frobenius_decay=0.001, and here it is 0.1"),
        ({"sign_in": {**FACTORS, "exclude": ["conv.*"]}}, "begun with exclude=None, and here it is ['conv.*']"),
    ],
    ids=str,
)
def test_other_arguments_than_the_folders_are_refused(begun, change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        pruning(begun, **change).fit(Trainers(), Small(), loader())


@pytest.mark.parametrize(
    ("name", "cut"), [("start.ckpt", 7), ("level-00.ckpt", 0), ("level-00.mask.pt", 0), ("level-01.last.ckpt", 7)]
)
def test_damaged_file_is_named_and_can_be_deleted(tmp_path, lrr, name, cut):
    with pytest.raises(RuntimeError, match="power cut"):
        pruning(tmp_path).fit(Trainers({1: cut}), seeded(epochs=EPOCHS), loader())
    damaged = tmp_path / name
    damaged.write_bytes(damaged.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"{name} is damaged.*Delete it, and the level that wrote it is trained"):
        pruning(tmp_path).fit(Trainers(), Small(), loader())
    damaged.unlink()
    module = seeded(epochs=EPOCHS)
    pruning(tmp_path).fit(Trainers(), module, loader())
    assert differing(lrr, copies(module)) == []


def test_file_is_written_whole_or_not_at_all(tmp_path):
    folder = Folder(tmp_path, rewinds=False)
    folder.write({"a": 1}, folder.start)
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        folder.write({"a": lambda: 2}, folder.start)
    assert folder.read(folder.start) == {"a": 1}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda callbacks: trainer(), "`make_trainer` must build a new Trainer with the callbacks that it is called"),
        (lambda callbacks: trainer(SignInCallback(), callbacks[1], enable_checkpointing=True), "must build a new"),
        (
            lambda callbacks: trainer(SignInCallback(), *callbacks, enable_checkpointing=True),
            "must not add a SignInCallback: every level has its own. Pass its arguments as sign_in={…}",
        ),
        (
            lambda callbacks: trainer(*callbacks, enable_checkpointing=True, fast_dev_run=True),
            "`fast_dev_run` writes no checkpoints",
        ),
        (
            lambda callbacks: trainer(*callbacks, epochs=1, enable_checkpointing=True),
            "`rewind_epoch`=2 must be an epoch of level 0, which has 1. Lower it, or train longer.",
        ),
        (
            lambda callbacks: trainer(*callbacks, epochs=-1, max_steps=5, enable_checkpointing=True),
            "`rewind_epoch`=2 must be an epoch of level 0, which has 1",
        ),
    ],
)
def test_wrong_trainer_is_refused(tmp_path, make, text):
    run = pruning(tmp_path, rewind="wr", rewind_epoch=2, sign_in={"rescale_until": 1})
    with pytest.raises(ValueError, match=re.escape(text)):
        run.fit(make, seeded(), loader())
    assert not (tmp_path / "level-00.ckpt").exists()


def test_checkpoint_to_resume_is_the_folders(tmp_path):
    with pytest.raises(ValueError, match="`ckpt_path` must be left out: the folder knows where to go on"):
        pruning(tmp_path).fit(Trainers(), Small(), loader(), ckpt_path="last")


def test_what_the_last_level_does_not_allow_is_said_before_the_first(tmp_path):
    with pytest.raises(ValueError, match=r"`structure` does not fit conv.weight"):
        pruning(tmp_path, structure="2:4", sparsity=0.5).fit(Trainers(), Small(), loader())
    with pytest.raises(ValueError, match="each of 3 layers must keep at least one weight"):
        pruning(tmp_path, sparsity=0.999).fit(Trainers(), Small(), loader())
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_pruned(tmp_path):
    module = seeded(lr=1e30)
    with pytest.raises(ValueError, match=r"weight is not finite at the end of level 0.*lower learning rate"):
        pruning(tmp_path, form="plain", sign_in={"parametrization": "plain"}).fit(Trainers(), module, loader())


def test_two_ranks_resume_to_what_they_end_with_uninterrupted(tmp_path):
    run_ranks("tests.iterative_ddp_run", tmp_path)
    first, *others = [
        torch.load(tmp_path / f"{run}{rank}.pt", weights_only=True) for run in ("whole", "again") for rank in (0, 1)
    ]
    assert [differing(first, other) for other in others] == [[], [], []]
    assert sum(int(first[name].count_nonzero()) for name in WEIGHTS) == KEPT[LAST]


def test_command_prunes_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    on_line = "--trainer.callbacks.init_args."
    options = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=4", "--trainer.enable_progress_bar=false"]
    command = ["prune", "--config", "mnist1d", "--folder", "pruned", "--prune_rate", "0.5", *options]
    command += ["--optimizer=AdamW", f"{on_line}sparsity=0.75", "--trainer.accelerator=cpu"]
    main(command)
    printed = capsys.readouterr().out
    assert re.search(r"test_acc +0\.\d+", printed)
    assert "75.00% of the selected weights are zero" in printed
    assert "pruned/merged.safetensors" in printed
    masks = [kept(tmp_path / "pruned", level) for level in range(3)]
    size = count(masks[0])
    assert [count(mask) for mask in masks] == [size, size // 2, size // 4]
    main(command)  # finished
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit):
        main([*command[:-3], "--trainer.callbacks=null"])
    assert "`trainer.callbacks` must have a SignInCallback" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("update", "rigl"), ("mask", "snip"), ("flip_signs", 0.5)])
def test_callback_of_the_command_leaves_to_it_what_it_decides(name, value):
    with pytest.raises(ValueError, match=f"`prune` decides '{name}' itself, and .* has {name}={value!r}. Leave it out"):
        arguments_for_pruning(SignInCallback(**{name: value}))
