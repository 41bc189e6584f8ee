"""A script of `distributed/test_first_call_ddp.py`: fits on two gloo ranks, whose masks may cut the network."""

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from lightning_signin import SignInError
from tests.callback.test_first_call import HALVES, Counting
from tests.small import callback, seeded, trainer

CASES = {"alone": None, "random": {"sparsity": 0.98}, "uneven": {"sparsity": 0.98}, "cut": HALVES}


class Uneven(Counting):
    """Calls the network in its first step on rank 0 only; both ranks have gradients of all weights."""

    def training_step(self, batch, batch_idx):
        if batch_idx or not self.global_rank:
            return super().training_step(batch, batch_idx)
        self.calls["training_step"] += 1
        return 1e-3 * sum(parameter.square().sum() for parameter in self.parameters())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {}
    for case, options in CASES.items():
        seeded()
        module = Uneven(False) if case == "uneven" else Counting(False)
        own = [] if options is None else [callback(**{"rescale_every_n_epochs": None, **options})]
        runner = trainer(*own, epochs=1, devices=2, strategy="ddp")
        error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                runner.fit(module)
            except SignInError as raised:
                error = str(raised)
        said = [str(warning.message) for warning in caught if "path from input to output" in str(warning.message)]
        found[case] = {**module.calls, "drawn": module.samples.drawn, "error": error, "said": said}
    (folder / f"{runner.global_rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads now and then abort an orderly exit: what counts is on disk


if __name__ == "__main__":
    main(Path(sys.argv[1]))
