"""Iterative pruning that is cut short and goes on ends with the weights of an uninterrupted one, bit for bit."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader

from tests.pruning import EPOCHS, KEPT, LAST, WEIGHTS, Trainers, pruned, pruning
from tests.ranks import run_ranks
from tests.small import BATCH, Small, copies, data, differing, loader, seeded


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
    with pytest.raises(ValueError, match=r"level-02.ckpt do not match the module: fc1.weight .*missing in"):
        pruning(tmp_path / "cut", rewind="imp").fit(Trainers(), Late(), loader())


def test_two_ranks_resume_to_what_they_end_with_uninterrupted(tmp_path):
    run_ranks("tests.iterative_ddp_run", tmp_path)
    first, *others = [
        torch.load(tmp_path / f"{run}{rank}.pt", weights_only=True) for run in ("whole", "again") for rank in (0, 1)
    ]
    assert [differing(first, other) for other in others] == [[], [], []]
    assert sum(int(first[name].count_nonzero()) for name in WEIGHTS) == KEPT[LAST]
