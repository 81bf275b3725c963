"""The README's commands, run in order as printed, on few images; and the files that must agree with each other."""

import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from programs import ENVIRONMENT, ROOT, run_train
from results import epoch_lines

README = (ROOT / "README.md").read_text()


def commands(word: str) -> list[str]:
    return [block for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) if word in block]


@pytest.mark.slow
def test_the_training_commands_work_as_printed(tmp_path, archive):
    (tmp_path / ".cache").symlink_to(archive.parent)
    (tmp_path / "app").symlink_to(ROOT / "app")
    environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    training = [command for command in commands("app/train.py") if re.match("(PYTHONPATH=. )?python ", command)]
    assert len(training) == 6
    for command in training:
        small = " --data.verify=false --data.val_split=10"
        if "--trainer.devices=2" not in command:
            small += " --trainer.accelerator=cpu --trainer.devices=1"  # the seed's command asks for a GPU
        result = subprocess.run(
            command.rstrip() + small, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert re.search(r"^test accuracy +[\d.]+% on CIFAR-10$", result.stdout, re.MULTILINE)
    assert (tmp_path / "logs/checkpoints/model.pt").exists()


@pytest.mark.slow
def test_make_train_looks_like_learning_and_reaches_95_percent(tmp_path):
    (command,) = re.findall(r"app/train\.py (--config .*)", (ROOT / "Makefile").read_text())
    config = command.replace("app/", f"{ROOT}/app/").split()
    output = run_train(*config, cwd=tmp_path).stdout
    accuracies = [line["val_acc"] for line in epoch_lines(output)]
    assert len(accuracies) == 4 and all(later > earlier - 0.01 for earlier, later in pairwise(accuracies))
    assert float(re.search(r"test accuracy +([\d.]+)%", output)[1]) >= 95


def test_make_help_lists_every_command():
    output = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", output)) == targets


def test_every_link_to_a_file_leads_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
