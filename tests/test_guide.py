"""The examples of docs/hooks.md run as they are printed: each after the first, which they share."""

import re
import sys
from pathlib import Path

from tests.test_readme import run

GUIDE = (Path(__file__).parent.parent / "docs" / "hooks.md").read_text(encoding="utf-8")
SHARED, *EXAMPLES = re.findall(r"## ([^\n]+)\n.*?```python\n(.*?)```", "## The task\n" + GUIDE, flags=re.DOTALL)


def test_every_section_has_one_example():
    assert [title for title, _ in EXAMPLES] == re.findall(r"^## (.+)$", GUIDE, flags=re.MULTILINE)


def test_examples_run(tmp_path):
    """In one process, since importing Lightning takes longer than they do; each in names of its own."""
    every = "for title, example in examples: exec(shared + example, {'__name__': title})"
    run(tmp_path, sys.executable, "-c", f"shared, examples = {SHARED[1]!r}, {EXAMPLES!r}\n{every}")
