"""How large the compressed form is: DeiT-small with random values and masks, bit for bit the same when read.

python -m benchmarks.file_size
"""

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import timm
import torch
from safetensors.torch import save_file

from lightning_signin import sparsify
from lightning_signin.export import load_compressed, save_compressed
from lightning_signin.export.plain_copy import plain_copy

SPARSITIES, REPEATS = (0.8, 0.9, 0.95), 5


def seconds(call: object) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    torch.set_num_threads(1)
    print("| sparsity | form | MB | times smaller | write, s | read, s |")
    print("|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        dense, packed = Path(folder) / "dense.safetensors", Path(folder) / "packed.safetensors"
        for sparsity in SPARSITIES:
            torch.manual_seed(0)
            net = plain_copy(sparsify(timm.create_model("deit_small_patch16_224"), sparsity=sparsity))
            state = net.state_dict()
            save_file(state, dense)
            for zstd in (False, True):
                write = seconds(lambda state=state, zstd=zstd: save_compressed(state, packed, zstd=zstd))
                read = seconds(lambda: load_compressed(packed))
                again = load_compressed(packed)
                assert list(again) == list(state)
                assert all(torch.equal(again[name], state[name]) for name in state)
                size, ratio = packed.stat().st_size / 1e6, dense.stat().st_size / packed.stat().st_size
                form = "bitmask, values, zstd" if zstd else "bitmask and values"
                print(f"| {sparsity:.0%} | {form} | {size:.1f} | {ratio:.2f} | {write:.2f} | {read:.2f} |")


if __name__ == "__main__":
    main()
