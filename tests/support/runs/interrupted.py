"""Interrupts and resumes runs of custom modules, and compares them with uninterrupted runs."""

import signal
import time
from pathlib import Path
from typing import Any

import torch
from runs.programs import ENVIRONMENT, run_train, run_train_warm
from runs.results import as_bytes, last_checkpoint, scalars

CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1")
GLYPHS = ("--model=glyph_net.GlyphNet", "--data=glyph_data.GlyphDataModule", "--optimizer.lr=0.01")


def train(*options: str, cwd: Path, cold: bool = False, env: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Runs train.py on the CPU; `cold` is required for more than one process."""
    run = run_train if cold else run_train_warm
    return run(*CPU, *options, cwd=cwd, env=ENVIRONMENT | (env or {}), **kwargs)


def interrupt(
    *options: str, cwd: Path, step: int, hook: str = "on_train_batch_end", signum: int = signal.SIGKILL, **kwargs: Any
) -> Any:
    """Runs train.py, which sends itself a signal in a hook at a step."""
    drill = {"file": "step", "hook": hook, "step": step, "signum": int(signum)}
    values = [f"--trainer.callbacks.{name}={value}" for name, value in drill.items()]
    code = 128 + signum if signum != signal.SIGKILL else -signum
    result = train(*options, "--trainer.callbacks+=tiny.Drill", *values, cwd=cwd, code=code, **kwargs)
    # TensorBoard orders a run's files by the second in which they were created, and a warm run can take less than one.
    time.sleep(1 - time.time() % 1)
    return result


def final_state(folder: Path) -> dict[str, Any]:
    """Returns everything that must be the same in two runs, with tensors as bytes.

    Throughput is left out, because it varies, and so is hp_metric, which Lightning logs as -1 at each start.
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
    """Returns the names of the results that differ between two runs."""
    first, second = final_state(one), final_state(other)
    return [name for name in first | second if first.get(name) != second.get(name)]
