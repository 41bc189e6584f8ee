"""Folders of runs to report on, and the sections of a page."""

import csv
import re
from pathlib import Path

LAYERS = ["net.conv1", *(f"net.layer{i}.{j}.conv" for i in (1, 2) for j in range(12)), "net.fc"]
LAYERS = [f"{name}.weight" for name in LAYERS]


def write_rows(folder: Path, rows: list[dict]) -> Path:
    """As CSVLogger: columns sorted by name, empty cells for what a row does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_run(folder: Path, epochs: int = 12, flips: float = 0.3, leave_out: str = "nothing") -> Path:
    """A run with numbers for every picture, but for the columns that hold a word."""
    rows: list[dict] = []
    for epoch in range(epochs):
        done = (epoch + 1) / epochs
        rows.append({"epoch": epoch, "step": 10 * epoch + 4, "train_loss": 3 * 0.5**epoch + 0.02})
        rows.append({"epoch": epoch, "step": 10 * epoch + 9, "train_loss": 2.5 * 0.5**epoch + 0.02})
        rows.append({"epoch": epoch, "step": 10 * epoch + 9, "val_loss": 2 * 0.6**epoch + 0.4, "val_acc": 0.8 * done})
        row = {"epoch": epoch, "step": 10 * epoch + 9, "signin/sparsity": 0.9, "signin/sign_flips": flips * done}
        row |= {"signin/sign_flips_since_last": flips / epochs, "signin/scaling": 0.7 ** (epoch % 5)}
        row |= {"signin/mask_change": 0.3 * (1 - done), "signin/update_progress": min(1.0, 1.3 * done)}
        if epoch % 3 == 2:
            row["signin/sharpness"] = 90 / (epoch + 1)
        warm = epoch >= 3
        if warm:
            row |= {"signin/flips_start_to_warmup": 0.12, "signin/flips_warmup_to_now": flips * done - 0.05}
        for place, name in enumerate(LAYERS):
            row |= {f"signin/layer/flips/{name}": flips * done * (1 + place / 30)}
            row |= {f"signin/layer/flips_start_to_warmup/{name}": 0.1 + place / 300} if warm else {}
            row |= {f"signin/layer/flips_warmup_to_now/{name}": 0.05 + place / 200} if warm else {}
            row |= {f"signin/layer/density/{name}": 1 / (1 + place), f"signin/layer/scaling/{name}": 0.9 - place / 60}
            row |= {f"signin/layer/scaling_spread/{name}": 0.1}
        rows.append(row)
    rows.append({"epoch": epochs, "step": 10 * epochs, "test_acc": 0.79})
    return write_rows(folder, [{k: v for k, v in row.items() if leave_out not in k} for row in rows])


def sections(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())
