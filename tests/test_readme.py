"""The README's examples run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_signin import SignInCallback

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


def test_yaml_examples_train(tmp_path):
    config, mask, spread, update = map(yaml.safe_load, blocks("yaml"))
    SignInCallback(**spread)
    (callback,) = config["trainer"]["callbacks"]
    assert callback["class_path"] == "lightning_signin.SignInCallback"
    assert config["trainer"]["max_epochs"] >= 2
    callback["init_args"] |= mask | update
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "config.yaml").write_text(blocks("yaml")[0])
    executable = Path(sys.executable).parent / "lightning-signin"
    for name in ("config.yaml", "both.yaml"):
        printed = run(tmp_path, str(executable), "fit", "--config", name, "--trainer.max_epochs", "1")
        assert "merged file" in printed
