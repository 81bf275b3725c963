"""Interrupts and resumes runs, and compares them with uninterrupted runs."""

import signal
import time
from pathlib import Path
from typing import Any

import torch
from runs.programs import ENVIRONMENT, SYNTHETIC, TINY, run_train, run_train_warm
from runs.results import as_bytes, last_checkpoint, scalars

# Two epochs of 16 steps, with a checkpoint after the first step, then every five steps and at the end of each epoch.
CHECKPOINTED_RUN = (*TINY, *SYNTHETIC, "--resume.every_n_steps=5", "--trainer.log_every_n_steps=3")
CPU_OPTIONS = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1")
THREE_EPOCHS = ("--trainer.max_epochs=3", "--resume.every_n_steps=3")  # of ten steps each, in tests/projects
GLYPHS = ("--model=glyph_net.GlyphNet", "--data=glyph_data.GlyphDataModule", "--optimizer.lr=0.01")


def options_of(module: type, data: str) -> tuple[str, str]:
    """Returns the options for a module and a data module in tests/projects/projects.py."""
    return f"--model=projects.{module.__name__}", f"--data=projects.{data}"


def train(*options: str, cwd: Path, cold: bool = False, env: dict[str, str] | None = None, **kwargs: Any) -> Any:
    """Runs train.py on the CPU; `cold` is required for more than one process."""
    run = run_train if cold else run_train_warm
    return run(*CPU_OPTIONS, *options, cwd=cwd, env=ENVIRONMENT | (env or {}), **kwargs)


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

    Of the throughput, only the steps are the same. Lightning logs hp_metric at each start, always as -1.
    """
    checkpoint = torch.load(last_checkpoint(folder / "logs/checkpoints"), weights_only=False)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
    result = {name: as_bytes(checkpoint[name]) for name in names}
    result["counts"] = checkpoint.get("counts")
    states = checkpoint["callbacks"].items()
    result["callbacks"] = as_bytes({name: state for name, state in states if "Counting" in name})
    series: dict[str, Any] = {}
    for log_dir in sorted((folder / "logs/tensorboard/tutorial").iterdir()):
        series |= scalars(log_dir)
    for name in {"samples_per_second", "images_per_second"} & series.keys():
        series[name] = [step for step, _ in series[name]]
    if "hp_metric" in series:
        series["hp_metric"] = set(series["hp_metric"])
    result |= {f"logged {name}": values for name, values in series.items()}
    return result | {"model": (folder / "logs/checkpoints/model.pt").read_bytes()}


def differences(one: Path, other: Path) -> list[str]:
    """Returns the names of the results that differ between two runs."""
    first, second = final_state(one), final_state(other)
    return [name for name in first | second if name not in first.keys() & second.keys() or first[name] != second[name]]


def assert_same_final_state(uninterrupted: Path, resumed: Path) -> None:
    """Asserts that a resumed run has the results of an uninterrupted one, and continues its log in the same folder."""
    assert differences(uninterrupted, resumed) == []
    for folder in (uninterrupted, resumed):
        assert [path.name for path in (folder / "logs/tensorboard/tutorial").iterdir()] == ["version_0"]


def assert_resumes_bit_exactly(folder: Path, *options: str, cold: bool = False, **interruption: Any) -> None:
    """Asserts that a run that is interrupted and resumed ends as an uninterrupted one."""
    uninterrupted, interrupted = folder / "uninterrupted", folder / "interrupted"
    uninterrupted.mkdir()
    interrupted.mkdir()
    train(*options, cwd=uninterrupted, cold=cold)
    interrupt(*options, cwd=interrupted, cold=cold, **interruption)
    assert "resuming from" in train(*options, cwd=interrupted, cold=cold).stdout
    assert_same_final_state(uninterrupted, interrupted)
