"""Reports: what is read, what is drawn, what is written, and how a real browser sees the page."""

import base64
import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_signin.cli.main import main
from lightning_signin.report import write_report
from lightning_signin.report.curves import draw_curve, draw_users_columns
from lightning_signin.report.drawing import COLOURS, as_png
from lightning_signin.report.end_of_run import draw_layer_density, draw_layer_flips, draw_layer_scaling, draw_stages
from lightning_signin.report.layers import short_names
from lightning_signin.report.pictures import PICTURES
from lightning_signin.report.runs import Run, read_runs

LAYERS = ["net.conv1", *(f"net.layer{i}.{j}.conv" for i in (1, 2) for j in range(12)), "net.fc"]
LAYERS = [f"{name}.weight" for name in LAYERS]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """The folder of a real, short run."""
    folder = tmp_path_factory.mktemp("fitted")
    ours = "--trainer.callbacks.init_args."
    options = [f"{ours}log_layers=true", f"{ours}warmup_epochs=1", f"{ours}sharpness_every_n_epochs=2"]
    limits = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=3", "--trainer.log_every_n_steps=1"]
    main(["fit", "--config", "digits", f"--trainer.logger.init_args.save_dir={folder}", *limits, *options])
    return folder / "digits" / "version_0"


def sections(page: Path) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page.read_text())


def test_epochs_are_counted_from_one_and_averaged(tmp_path):
    rows = [
        {"step": 0, "lr": 0.1},  # a logger without epochs
        {"epoch": 0, "step": 4, "train_loss": 4.0},
        {"epoch": 0, "step": 9, "train_loss": 2.0},
        {"epoch": 1, "step": 14, "train_loss": "nan"},
        {"epoch": 2, "step": 20, "test_acc": 0.5},
    ]
    path = write_rows(tmp_path, rows) / "metrics.csv"
    path.write_text(path.read_text() + "2,0.0")  # a row that is being written
    [run] = read_runs([tmp_path])
    epochs, values = run.curve("train_loss")
    assert epochs == [1, 2]
    assert values[0] == 3.0
    assert str(values[1]) == str(run.last("train_loss")) == "nan"
    assert (run.epochs, run.last("test_acc"), run.last("nothing")) == (2, 0.5, None)


def test_of_a_step_and_an_epoch_column_the_latter_is_shown(tmp_path):
    rows = [{"epoch": 0, "step": 1, "train_loss_step": 1.0, "train_loss_epoch": 2.0, "test_loss": 3.0, "val_Loss": 4.0}]
    [run] = read_runs([write_rows(tmp_path, rows)])
    assert run.named("loss") == ["val_Loss", "train_loss_epoch", "test_loss"]


def test_runs_are_named_by_the_shortest_path_that_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("a/x/v0", "b/x/v0", "b/y/v0")]
    assert [run.name for run in read_runs(folders[1:])] == ["x/v0", "y/v0"]
    assert [run.name for run in read_runs(folders)] == ["a/x/v0", "b/x/v0", "b/y/v0"]


def test_layers_go_in_the_models_order_where_a_file_of_the_run_has_it(fitted, tmp_path):
    [run] = read_runs([fitted])
    names = list(run.layers("density"))
    assert run.knows_order
    assert names[0].endswith("layers.0.weight")
    assert names[-1].endswith("layers.14.weight")
    assert names.index("network.layers.6.shortcut.0.weight") > names.index("network.layers.6.conv2.weight")
    shutil.copy(fitted / "metrics.csv", tmp_path)
    [run] = read_runs([tmp_path])
    assert not run.knows_order
    assert sorted(names) == sorted(run.layers("density"))
    (tmp_path / "some.ckpt").write_bytes(b"damaged")
    shutil.copy(fitted / "checkpoints" / "last.ckpt", tmp_path)
    assert list(read_runs([tmp_path])[0].layers("density")) == names


def test_layer_names_lose_what_all_share_and_stay_whole():
    assert short_names(["a.b.fc.weight", "a.b.conv.weight"]) == ["fc", "conv"]
    assert short_names(["fc.weight"]) == ["fc"]
    assert short_names(["x.weight", "encoder.block.attention.output.dense.weight"])[1] == "…attention.output.dense"


def test_stage_bars_are_the_last_measurement_in_percent(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", flips=0.5)])
    [axes] = draw_stages(runs).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([30, 12, 25, 50, 12, 45])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["start → end", "start → warm-up", "warm-up → end"]


def test_curves_have_axes_units_and_a_legend(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", epochs=6)])
    figure = draw_curve(runs, "signin/sign_flips", "flips")
    [axes] = figure.axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(30)
    assert [line.get_xdata()[-1] for line in axes.lines] == [12, 6]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epochs trained", "flips (%)")
    assert [text.get_text() for text in figure.legends[0].texts] == [run.name for run in runs]
    assert len({line.get_color() for line in axes.lines}) == 2


def test_a_test_is_a_star_at_the_end_and_losses_may_be_logarithmic(tmp_path):
    runs = read_runs([write_run(tmp_path / "a")])
    figure = draw_users_columns(runs, "acc", "accuracy")
    validation, star = figure.axes[0].lines
    assert (list(star.get_xdata()), star.get_marker(), validation.get_linestyle()) == ([12], "*", "-")
    assert [text.get_text() for text in figure.legends[0].texts][1:] == ["val_acc", "test_acc"]
    assert figure.axes[0].get_yscale() == "linear"
    assert draw_users_columns(runs, "loss", "loss").axes[0].get_yscale() == "log"


def pixels(runs: list[Run], draw: Callable[[list[Run]], Figure], colour: str) -> int:
    """How many have a colour, below the one line of a legend of short names."""
    wanted = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    image = imread(io.BytesIO(as_png(draw, runs)))[70:, :, :3]
    return int((abs(image - wanted).max(axis=2) < 0.01).sum())


def test_single_measurement_is_seen(tmp_path):
    rows = [{"epoch": 0, "step": 1, "val_acc": 0.5, "signin/sharpness": 7.0}, {"epoch": 1, "step": 2, "test_loss": 0.3}]
    runs = read_runs([write_rows(tmp_path / "a" / "v0", rows)])
    shown = [picture for picture in PICTURES if picture.has(runs[0])]
    assert [picture.name for picture in shown] == ["accuracy", "loss", "sharpness"]
    assert all(pixels(runs, picture.draw, COLOURS[0]) > 60 for picture in shown)


def test_lines_on_each_other_are_both_seen(tmp_path):
    runs = read_runs([write_run(tmp_path / name / "v0", leave_out="layer") for name in "ab"])
    draw = partial(draw_curve, column="signin/sparsity", label="zeros", up_to=104)
    assert all(pixels(runs, draw, colour) > 100 for colour in COLOURS[:2])


def test_layer_pictures_name_each_layer_once_and_show_the_last_value(tmp_path):
    runs = read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", leave_out="warmup")])
    figure = draw_layer_flips(runs)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["start → end", "start → warm-up", "warm-up → end"]
    assert list(figure.axes[0].lines[0].get_ydata()) == pytest.approx(
        [100 * v for v in runs[0].layers("flips").values()]
    )
    labels = [tick.get_text() for tick in figure.axes[-1].get_xticklabels()]
    assert labels[:3] == ["conv1", "fc", "layer1.0.conv"]
    assert len(labels) == len(set(labels)) == len(LAYERS)
    assert len(draw_layer_density(runs).axes[0].patches) == 2 * len(LAYERS)
    assert draw_layer_scaling(runs).axes[0].get_ylabel() == "m² − w²"


def test_too_many_layers_are_not_all_named(tmp_path):
    rows = [{"epoch": 0, "step": 1, **{f"signin/layer/density/block.{i}.weight": 0.1 for i in range(200)}}]
    [axes] = draw_layer_density(read_runs([write_rows(tmp_path, rows)])).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["0", "4", "8"]
    assert axes.get_xlabel() == "weight, by name; one of 4 is named"


def test_real_run_gets_its_page(fitted, capsys):
    main(["report", str(fitted)])
    page = fitted / "report" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert sections(page) == [*(picture.title for picture in PICTURES[:-2]), "Pictures without data"]
    assert all(f"<li>{picture.title}: needs numbers in" in page.read_text() for picture in PICTURES[-2:])
    assert {file.suffix for file in page.parent.iterdir()} == {".html", ".png"}


def test_every_picture_is_on_the_page_and_beside_it(tmp_path):
    page = write_report([write_run(tmp_path / "a"), write_run(tmp_path / "b")], tmp_path / "new" / "out")
    assert sections(page) == [picture.title for picture in PICTURES]
    embedded = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page.read_text())]
    for picture, data in zip(PICTURES, embedded, strict=True):
        assert (page.parent / f"{picture.name}.png").read_bytes() == data
        assert imread(io.BytesIO(data)).std() > 0.02
    assert len(list(page.parent.iterdir())) == len(PICTURES) + 1


def test_what_is_missing_is_named_with_its_column_and_source(tmp_path):
    runs = [write_run(tmp_path / name, leave_out="signin") for name in "ab"]
    text = write_report(runs).read_text()
    assert text.count("<li>") == len(PICTURES) - 2
    assert (
        "Sharpness: needs numbers in the column <code>signin/sharpness</code>. SignInCallback(sharpness_every" in text
    )
    assert "needs numbers in the column <code>signin/layer/density/…</code>. SignInCallback(log_layers=True)" in text
    write_run(runs[1], leave_out="layer")
    text = write_report(runs).read_text()
    name = read_runs(runs)[0].name
    assert f"Figure 4(b) of the paper. Without numbers in the column <code>signin/sharpness</code>: {name}." in text
    assert text.count("<li>") == 3


def test_names_are_text_on_the_page_and_in_pictures(tmp_path):
    runs = [write_run(tmp_path / "_<b>&" / name, leave_out="signin") for name in ("$x^$", "b")]
    page = write_report(runs)
    assert "_&lt;b&gt;&amp;/<wbr>$x^$" in page.read_text()
    assert "<b>" not in page.read_text()
    legend = draw_users_columns(read_runs(runs), "acc", "accuracy").legends[0]
    assert [text.get_text() for text in legend.texts][:2] == [" _<b>&/$x^$", " _<b>&/b"]


def test_users_settings_of_matplotlib_are_neither_taken_nor_changed(tmp_path):
    run = write_run(tmp_path / "a", leave_out="signin")
    plain = write_report([run]).with_name("loss.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert write_report([run]).with_name("loss.png").read_bytes() == plain
        assert dict(matplotlib.rcParams) == before


def test_report_replaces_an_earlier_one_and_nothing_else(tmp_path):
    run = write_run(tmp_path / "a", leave_out="signin")
    page = write_report([run])
    (page.parent / "notes.txt").write_text("mine")
    write_report([write_rows(run, [{"epoch": 0, "step": 1, "val_acc": 0.5}])])
    assert sorted(path.name for path in page.parent.iterdir()) == ["accuracy.png", "notes.txt", "report.html"]
    with pytest.raises(ValueError, match="`output` must be a new or empty folder, or one of an earlier report"):
        write_report([run], run)
    with pytest.raises(ValueError, match=r"`output` must be a folder, and .*metrics\.csv is a file"):
        write_report([run], run / "metrics.csv")


def test_failed_write_leaves_the_earlier_report_as_it_was(tmp_path):
    run = write_run(tmp_path / "a", leave_out="signin")
    page = write_report([run])
    page.with_name("loss.png").unlink()
    page.with_name("loss.png").mkdir()
    before = {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()}
    write_run(run, epochs=3, leave_out="signin")
    with pytest.raises(ValueError, match="must be a folder that can be written"):
        write_report([run])
    assert {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "There is no folder nowhere. Pass a run's folder, e.g. runs/digits/version_0."),
        (["."], "There is no metrics.csv in ., which Lightning's CSVLogger writes. Its runs are bytes, cells, empty,"),
        (
            ["none"],
            "There is no metrics.csv in none, which Lightning's CSVLogger writes. Train with that logger first.",
        ),
        (["empty"], "empty/metrics.csv is not of CSVLogger: it needs the columns epoch and step, and has nothing."),
        (["foreign"], "it needs the columns epoch and step, and has name, age."),
        (["header"], "header/metrics.csv has no numbers yet. Wait for the run's first epoch to end."),
        (["words"], "words/metrics.csv has 'high' in line 2, column loss, which must be a number."),
        (["epochs"], "epochs/metrics.csv has inf for the epoch in line 2, which must be a number."),
        (["cells"], "cells/metrics.csv has 2 cells in line 2, and its header has 3."),
        (["bytes"], "bytes/metrics.csv is not a text file of comma-separated values"),
        (["good", "./good"], "good is given more than once. Name each run once."),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    contents = {
        "empty": b"",
        "foreign": b"name,age\nx,1\n",
        "header": b"epoch,step,loss\n",
        "words": b"epoch,step,loss\n0,1,high\n",
        "epochs": b"epoch,step,loss\ninf,1,0.5\n",
        "cells": b"epoch,step,loss\n0,1\n1,2,3\n",
        "bytes": b"\xff\xfe\0",
        "good": b"epoch,step,loss\n0,1,0.5\n",
    }
    Path("none").mkdir()
    for name, content in contents.items():
        Path(name).mkdir()
        Path(name, "metrics.csv").write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        main(["report", *arguments, "--output", "out"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert text in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_missing_matplotlib_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(write_run(tmp_path / "a"))])
    assert stop.value.code == 2
    assert "needs matplotlib. Install it: pip install 'lightning-signin[plot]'." in capsys.readouterr().err


# Writes into the page what a browser made of it: pictures with their natural size, what was fetched, what overflows.
ASK = """<script>addEventListener("load", () => {
  const images = [...document.images];
  const loaded = images.filter(i => i.complete && i.naturalWidth == i.getAttribute("width") && i.naturalHeight > 99);
  const fetched = performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:"));
  const root = document.documentElement;
  document.body.dataset.seen = [images.length, loaded.length, fetched.length, root.scrollWidth - root.clientWidth];
})</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("number", [1, 2])
def test_browser_shows_all_pictures_and_fetches_nothing(tmp_path, number):
    runs = [write_run(tmp_path / f"a-rather-long-name-of-a-run-{i}" / "version_0") for i in range(number)]
    text = write_report(runs, tmp_path / "out").read_text()
    assert not re.findall(r"""(?:src|url|@import)\W*(?!data:)[\w/]+:""", text)
    policy = "default-src 'none'"
    asking = tmp_path / "asking.html"
    asking.write_text(text.replace(policy, f"{policy}; script-src 'unsafe-inline'").replace("</body>", f"{ASK}</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"]
    for width in (1200, 500):  # 500 is the narrowest window of Chromium
        own = [f"--user-data-dir={tmp_path / str(width)}", f"--window-size={width},900", "--dump-dom", asking.as_uri()]
        done = subprocess.run([str(CHROMIUM), *flags, *own], capture_output=True, text=True, timeout=120, check=True)
        seen = re.search(r'data-seen="(.*?)"', done.stdout)
        assert seen is not None, done.stderr
        assert seen[1] == f"{len(PICTURES)},{len(PICTURES)},0,0"
