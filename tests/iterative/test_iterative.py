"""Iterative magnitude pruning against a slow loop of plain fits: counts, masks, files and log of its levels."""

import logging
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from lightning_signin import SignInCallback, masks_from_file
from lightning_signin.iterative.levels import Levels
from tests.pruning import BATCHES, EPOCHS, FACTORS, KEPT, LAST, SIZE, WEIGHTS, count, kept, pruned
from tests.small import Small, copies, differing, loader, seeded, trainer


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
    choice = levels.choice(shapes, layouts={})
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
    choice = levels.choice(shapes, layouts={})
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


def test_log_says_where_the_mask_of_each_level_is_from(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        pruned(tmp_path)
    said = [record.message for record in caplog.records if "values kept" in record.message]
    origins = ["nothing masked", *(f"mask of {tmp_path / f'level-0{level}.mask.pt'}" for level in (1, 2))]
    assert len(said) == 3
    assert all(f" sparse), {origin}; " in line for line, origin in zip(said, origins, strict=True)), said


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
