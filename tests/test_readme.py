"""The README's examples run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_example_runs(tmp_path, index):
    run(tmp_path, sys.executable, "-c", blocks("python")[index])


def test_yaml_example_trains(tmp_path):
    (config,) = blocks("yaml")
    assert "class_path: lightning_signin.SignInCallback" in config
    (tmp_path / "config.yaml").write_text(config)
    settings = yaml.safe_load(config)
    assert settings["trainer"]["max_epochs"] >= 2
    executable = Path(sys.executable).parent / "lightning-signin"
    printed = run(tmp_path, str(executable), "fit", "--config", "config.yaml", "--trainer.max_epochs", "1")
    assert "merged file" in printed
