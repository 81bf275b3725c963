"""Measures the peak memory of train.py on all images, with validation, test, checkpoints and export."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measuring import DATA, DEVICES, ROOT, Result, train_command

RUNS = {
    "ResNet-18, batch 32": ["--trainer.limit_train_batches=50", "--trainer.limit_val_batches=10"],
    "recipe, batch 512": [f"--config={ROOT}/examples/fast/fast.yaml", "--trainer.limit_train_batches=20"],
}


def peak(options: list[str], device: str) -> tuple[float, float]:
    """Trains for two epochs and returns the peak memory of the process and of its GPU, in GB."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"--checkpoint.dirpath={folder}", f"--logger.save_dir={folder}"]
        limits = ["--trainer.callbacks=peak.PrintPeak", "--trainer.max_epochs=2", "--trainer.limit_test_batches=5"]
        device = [f"--trainer.accelerator={device}", "--trainer.devices=1"]
        command = train_command(*options, *DATA, *paths, *limits, *device)
        result = subprocess.run(**command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return tuple(int(number) / 1e9 for number in re.search(r"peak memory: (\d+) (\d+)", result.stdout).groups())


def measure_memory() -> Iterator[Result]:
    if not Path("/proc/self/status").exists():
        return print("peak memory is measured on Linux only")
    for device in DEVICES:
        for name, options in RUNS.items():
            of_process, of_gpu = peak(options, device)
            if device == "cpu":
                yield Result(f"{name}, cpu: peak memory", of_process, "GB", most=2)
            else:
                yield Result(f"{name}, gpu: peak GPU memory", of_gpu, "GB", most=2, details={"process GB": of_process})
