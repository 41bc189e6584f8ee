"""A disk that is full at any write of ours: the previous files stay whole, and nothing else is left."""

import subprocess
import sys
from pathlib import Path

import pytest

WRITES = """
import resource, signal, sys
from functools import partial
from pathlib import Path
import torch
from lightning_signin import sparsify
from lightning_signin.export.formats import export
from lightning_signin.iterative.folder import Folder
from lightning_signin.report import write_report
from lightning_signin.sweep.grid import Cell
from lightning_signin.sweep.output import write_results
from lightning_signin.sweep.result import Result

def network(form, root, seed):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    form, _, zstd = form.partition("+")
    given = {"example_input": torch.randn(2, 64)} if form in ("onnx", "torch-export") else {}
    export(sparsify(net, seed=seed), root / "weights", form, zstd=bool(zstd), **given)

def levels(root, seed):
    Folder(root, rewinds=False).write({"weight": torch.full((1000,), seed)}, root / "start.ckpt")

def sweep(root, seed):
    results = [Result(Cell("plain", 0.9, s), "runs/0", {"test_acc": s / 9}) for s in range(seed + 1)]
    write_results(root, results, "test_acc")

def report(root, seed):
    run = root.parent / f"run-{seed}"
    run.mkdir()
    (run / "metrics.csv").write_text(f"epoch,step,val_acc\\n0,9,0.{seed}\\n1,19,0.9\\n")
    write_report([run], root)

def files(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}

forms = ["ckpt", "safetensors", "compressed", "compressed+zstd", "torch-export", "onnx"]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
most = resource.getrlimit(resource.RLIMIT_FSIZE)
for write in (*(partial(network, form) for form in forms), levels, sweep, report):
    what = write.args[0] if isinstance(write, partial) else write.__name__
    root = Path(sys.argv[1], what)
    root.mkdir()
    write(root, 1)
    before, failed = files(root), False
    resource.setrlimit(resource.RLIMIT_FSIZE, (120, most[1]))  # every write beyond it fails, as on a full disk
    try:
        write(root, 2)
    except (OSError, ValueError, RuntimeError):
        failed = True
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
    same = bool(before) and files(root) == before
    write(root, 2 if what != "report" else 3)
    print(what, failed, same, files(root) != before)
"""
WHAT = ["ckpt", "safetensors", "compressed", "compressed+zstd", "torch-export", "onnx", "levels", "sweep", "report"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no RLIMIT_FSIZE")
def test_full_disk_leaves_the_previous_file_and_nothing_else(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WRITES, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.endswith(("True", "False"))]
    assert found == [f"{what} True True True" for what in WHAT], done.stderr[-3000:]
