"""Measures accuracy and training time, from the first step to the last, of the fast recipe over several seeds.

    .venv/bin/python benchmarks/recipe.py [--num_seeds=3] [--leave_out] [--json=FILE] [options of train.py]

With --leave_out, it also trains without each part of the recipe, which takes hours. CIFAR-10 is read from .cache.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter

ROOT = Path(__file__).parents[1]
FOLDERS = ("app", "examples/synthetic", "examples/fast")
sys.path[:0] = [str(ROOT / folder) for folder in FOLDERS]
PARTS = {
    "nothing": [],
    "progressive resizing": ["--model.resolutions=[32,32,32]"],
    "orthogonal updates": ["--model.orthogonal=false"],
    "whitening": ["--model.whiten=false"],
    "label smoothing": ["--model.label_smoothing=0"],
    "alternate flips, for random ones": ["--data=CIFAR10DataModule"],
    "test-time augmentation": ["--model.tta=false"],
    "bf16, for 32 bits": ["--trainer.precision=32-true"],
}


def run(options: list[str]) -> tuple[float, float]:
    """Trains once and returns the seconds of training and the test accuracy in percent."""
    command = [sys.executable, ROOT / "app/train.py", f"--config={ROOT}/examples/fast/fast.yaml"]
    command += ["--trainer.precision=bf16-mixed", "--data.data_dir=.cache"]
    with tempfile.TemporaryDirectory() as folder:
        command += [f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}", *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[: len(FOLDERS)])}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            start = end = accuracy = 0.0
            for line in process.stdout:
                if line.startswith("training in"):
                    start = perf_counter()
                elif line.startswith("epoch="):
                    end = perf_counter()
                elif found := re.search(r"\btest_acc=([\d.]+)", line):
                    accuracy = float(found[1]) * 100
    if process.returncode:
        sys.exit(process.returncode)
    return end - start, accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_seeds", type=int, default=3, help="Number of runs, each with its own seed.")
    parser.add_argument("--leave_out", action="store_true", help="Also train without each part of the recipe.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the results to this JSON file.")
    known, options = parser.parse_known_args()
    from measuring import write_report  # takes seconds to import

    results: list[dict] = []
    write_report(known.json, results)  # fails before the runs if the file cannot be written
    print(f"{'left out':34}{'seconds':>8}{'test accuracy':>15}{'spread':>8}")
    for name, changes in PARTS.items() if known.leave_out else [("nothing", [])]:
        seeds = [[f"--seed_everything={seed}", f"--data.seed={seed}"] for seed in range(known.num_seeds)]
        runs = [run([*changes, *options, *seed]) for seed in seeds]
        seconds, accuracies = zip(*runs, strict=True)
        spread = f"{stdev(accuracies):7.2f} " if len(runs) > 1 else ""
        print(f"{name:34}{mean(seconds):8.0f}{mean(accuracies):13.2f} %{spread}", flush=True)
        results.append({"left out": name, "options": changes, "seconds": seconds, "test accuracies": accuracies})
        write_report(known.json, results)


if __name__ == "__main__":
    main()
