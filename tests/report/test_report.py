"""The page of a report: what is on it and beside it, and how a real browser sees it."""

import base64
import io
import re
import shutil
import subprocess

import matplotlib
import pytest
from matplotlib.image import imread

from lightning_signin.report import write_report
from lightning_signin.report.curves import draw_users_columns
from lightning_signin.report.pictures import PICTURES
from lightning_signin.report.runs import read_runs
from tests.reports import sections, write_rows, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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
    with pytest.raises(ValueError, match=r"`output` must be a folder, but .*metrics\.csv is a file"):
        write_report([run], run / "metrics.csv")


def test_failed_write_leaves_the_earlier_report_as_it_was(tmp_path):
    run = write_run(tmp_path / "a", leave_out="signin")
    page = write_report([run])
    page.with_name("loss.png").unlink()
    page.with_name("loss.png").mkdir()
    before = {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()}
    write_run(run, epochs=3, leave_out="signin")
    with pytest.raises(ValueError, match="must be a writable folder"):
        write_report([run])
    assert {path: path.read_bytes() for path in page.parent.iterdir() if path.is_file()} == before


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
