"""Tests of the benchmark of the fast recipe."""

import json
import os
import subprocess
import sys

import pytest
from runs.programs import ROOT


@pytest.mark.slow
def test_the_benchmark_of_the_recipe_reports_the_accuracy_of_each_seed(tmp_path):
    options = ["--num_seeds=2", f"--json={tmp_path}/results.json", "--trainer.max_epochs=2"]
    options += ["--data=synthetic.SyntheticCIFAR10DataModule", "--data.num_train_images=600"]
    options += ["--data.num_test_images=100", "--data.batch_size=60"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, ROOT / "benchmarks/recipe.py", *options]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert all(seconds > 0 for seconds in result["seconds"])
    assert len(set(result["test accuracies"])) == 2 and min(result["test accuracies"]) > 15  # of ten classes
