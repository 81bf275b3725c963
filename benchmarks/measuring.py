"""Shared parts of the benchmarks: results with targets, a clock for steps, images, and the hardware.

train.py imports it too, with this folder in PYTHONPATH.
"""

import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import pytorch_lightning
import torch
import torchvision
from cifar10 import CIFAR10DataModule
from pytorch_lightning import Callback
from synthetic import SyntheticCIFAR10DataModule

ROOT = Path(__file__).parents[1]
NUM_WARMUP_STEPS = 5  # not timed: they allocate memory and write the first checkpoint
DEVICES = ["cpu", "gpu"] if torch.cuda.is_available() else ["cpu"]
HAS_CIFAR10 = any(Path(".cache", name).exists() for name in ("cifar-10-python.tar.gz", "cifar-10-batches-py"))
# The speed does not depend on the content of the images.
DATA = ["--data.verify=false"] if HAS_CIFAR10 else ["--data=synthetic.SyntheticCIFAR10DataModule"]


@dataclass
class Result:
    """A measured value and its target, if any; `details` are the numbers that it was computed from."""

    what: str
    value: float
    unit: str = "times"
    least: float | None = None
    most: float | None = None
    details: dict[str, float] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        if self.least is None and self.most is None:
            return None
        return self.value >= self.least if self.most is None else self.value <= self.most

    def __str__(self) -> str:
        state = {True: "ok", False: "MISSED", None: ""}[self.is_met]
        target = f"at least {self.least:g}" if self.least else f"at most {self.most:g}" if self.most else ""
        details = ", ".join(f"{name} {value:.4g}" for name, value in self.details.items())
        return f"{state:8}{self.what:72}{self.value:>9.4g} {self.unit:7}{target:14} {details}".rstrip()


class Clock(Callback):
    """Measures the seconds of each step; on a GPU with CUDA events, so that no step synchronizes."""

    def __init__(self):
        self.ticks: list[Any] = []

    def tick(self, device: str) -> None:
        if device == "cpu":
            self.ticks.append(perf_counter())
        else:
            self.ticks.append(torch.cuda.Event(enable_timing=True))
            self.ticks[-1].record()

    def seconds(self) -> list[float]:
        if isinstance(self.ticks[0], float):
            return [end - start for start, end in pairwise(self.ticks[NUM_WARMUP_STEPS - 1 :])]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(self.ticks[NUM_WARMUP_STEPS - 1 :])]

    def on_train_batch_end(self, trainer, *_: Any) -> None:
        self.tick("cpu" if trainer.strategy.root_device.type == "cpu" else "gpu")


class PrintSteps(Clock):
    """Prints the seconds of all steps at the end."""

    def on_train_end(self, trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            print("seconds of steps:", *self.seconds(), flush=True)


class Images(CIFAR10DataModule):
    """CIFAR-10, or as many synthetic images, read only once per process."""

    def read(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        return read_images()


@cache
def read_images() -> tuple[torch.Tensor, torch.Tensor, int]:
    return (CIFAR10DataModule(verify=False) if HAS_CIFAR10 else SyntheticCIFAR10DataModule()).read()


def seconds_per_step(rounds: list[list[float]]) -> float:
    """Returns the mean over steps, which may differ, of the median over rounds, which excludes disturbed ones."""
    return mean(median(same_step) for same_step in zip(*rounds, strict=True))


def interleave(alternatives: dict[str, Callable[[], Any]], num_rounds: int) -> dict[str, list[Any]]:
    """Runs the alternatives in turns and returns the results of each by name, one per round."""
    results: dict[str, list[Any]] = {name: [] for name in alternatives}
    for _ in range(num_rounds):
        for name, measure in alternatives.items():
            results[name].append(measure())
    return results


@cache
def hardware_and_versions() -> dict[str, Any]:
    """Returns the versions and the hardware."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pytorch-lightning": pytorch_lightning.__version__,
        "cpu": f"{cpu}, used as {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "load average before": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name() if "gpu" in DEVICES else None,
        "images": "CIFAR-10" if HAS_CIFAR10 else "synthetic",
    }


def write_report(path: Path | None, results: list[dict[str, Any]]) -> None:
    """Writes results, versions and hardware to a JSON file, unless `path` is None."""
    if path:
        report = {"command": sys.argv, **hardware_and_versions(), "results": results}
        path.write_text(json.dumps(report, indent=2) + "\n")


def train_command(*options: str, **environment: str) -> dict[str, Any]:
    """Returns the arguments of Popen that start app/train.py with these options."""
    command = [sys.executable, str(ROOT / "app/train.py"), *options]
    path = {"PYTHONPATH": f"{ROOT}/benchmarks:{ROOT}/examples/synthetic:{ROOT}/examples/fast"}
    return {"args": command, "env": os.environ | path | environment}


def has_bf16(device: str) -> bool:
    """Returns whether a device computes in bfloat16, instead of emulating it slowly."""
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "bf16" in cpuinfo.read_text()
