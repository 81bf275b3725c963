"""Runs of anybody's module that are interrupted and go on, and what they must have in common with others."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from programs import ENVIRONMENT, PATH, ROOT, run_train, run_train_warm
from results import as_bytes, last_checkpoint, scalars

WITH_OWN_PROJECT = f"{PATH}{os.pathsep}{ROOT}/tests/own_project"
CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1")
GLYPHS = ("--model=glyph_net.GlyphNet", "--data=glyph_data.GlyphDataModule", "--optimizer.lr=0.01")


def train(*options: str, cwd: Path, cold: bool = False, env: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Runs train.py where it finds the other project's modules; cold if there is more than one process."""
    run = run_train if cold else run_train_warm
    return run(*CPU, *options, cwd=cwd, env=ENVIRONMENT | {"PYTHONPATH": WITH_OWN_PROJECT} | (env or {}), **kwargs)


def interrupt(
    *options: str, cwd: Path, step: int, hook: str = "on_train_batch_end", signum: int = signal.SIGKILL, **kwargs: Any
) -> Any:
    """A run that gets a signal in a hook once its step is reached."""
    drill = {"file": "step", "hook": hook, "step": step, "signum": int(signum)}
    values = [f"--trainer.callbacks.{name}={value}" for name, value in drill.items()]
    code = 128 + signum if signum != signal.SIGKILL else -signum
    result = train(*options, "--trainer.callbacks+=tiny.Drill", *values, cwd=cwd, code=code, **kwargs)
    # TensorBoard reads a run's files in the order of the seconds in which they were made, and a warm one takes less.
    time.sleep(1 - time.time() % 1)
    return result


def end(folder: Path) -> dict[str, Any]:
    """Everything that two runs have in common if they end in the same way.

    Throughput depends on the time, and Lightning logs hp_metric, always -1, whenever it starts.
    """
    checkpoint = torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "counts", "callbacks")
    result = {name: as_bytes(checkpoint.get(name)) for name in names}
    result["callbacks"] = {name: state for name, state in result["callbacks"].items() if "Counting" in name}
    series: dict[str, list[tuple[int, float]]] = {}
    for log_dir in sorted((folder / "logs/tensorboard/tutorial").iterdir()):
        series |= scalars(log_dir)
    others = ("hp_metric", "samples_per_second", "images_per_second")
    result |= {f"logged {name}": values for name, values in series.items() if name not in others}
    return result | {"model": (folder / "logs/checkpoints/model.pt").read_bytes()}


def differences(one: Path, other: Path) -> list[str]:
    first, second = end(one), end(other)
    return [name for name in first | second if first.get(name) != second.get(name)]
