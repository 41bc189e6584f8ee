"""What CONTRIBUTING.md says of the code is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([a-z_0-9/]+(?:\.py|\.md|/))`", TEXT)))


@pytest.mark.parametrize("name", NAMED)
def test_every_file_that_is_named_is_there(name):
    assert any((folder / name).exists() for folder in (ROOT, ROOT / "lightning_signin"))


def test_no_walk_enters_a_file_twice():
    walks = re.split(r"^ ?\d+\. ", TEXT.split("## Ten walks")[1], flags=re.MULTILINE)[1:]
    assert len(walks) == 10
    for walk in walks:
        files = re.findall(r"`([a-z_0-9/]+\.py)`", walk)
        assert len(files) == len(set(files)), walk


@pytest.mark.parametrize(("table", "file"), re.findall(r"`([A-Z]+)` of `([a-z_0-9/]+\.py)`", TEXT))
def test_every_table_is_in_its_file(table, file):
    folder = ROOT if file.startswith("tests/") else ROOT / "lightning_signin"
    assert re.search(rf"^{table}\b", (folder / file).read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_the_version_is_one():
    from lightning_signin import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
