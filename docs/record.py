"""Records the data of the figures in docs/results/NAME.json: runs train.py, and saves what it prints and logs.

    .venv/bin/python docs/record.py NAME [options of train.py]

NAME is a key of RECORDINGS below. A run on CIFAR-10 takes minutes, reads .cache, and needs an otherwise idle machine.
"""

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
SYNTHETIC = "python app/train.py --config examples/synthetic/synthetic.yaml --trainer.max_epochs=2"
FAST = "python app/train.py --config examples/fast/fast.yaml --trainer.precision=bf16-mixed --data.val_split=5000"
KILLED_AFTER = 73  # steps; an epoch has 50
PACKAGES = ("torch", "torchvision", "pytorch-lightning")


def learning_curve(command: str, folder: Path) -> dict[str, Any]:
    """Returns the metrics of each epoch, and the seconds of training until its end, with and without validation."""
    epochs, output, start, num_samples = [], [], 0.0, 0
    with running(command, folder) as process:
        for line in process.stdout:
            output.append(line)
            if found := re.match(r"training in .* (\d+) samples per step", line):
                start, num_samples = time.monotonic(), int(found[1])
            elif line.startswith("epoch="):
                metrics = {name: float(value) for name, value in re.findall(r"(\w+)=(\S+)", line)}
                before = epochs[-1] if epochs else {"step": 0, "training_seconds": 0}
                num_images = (metrics["step"] - before["step"]) * num_samples
                training_seconds = before["training_seconds"] + num_images / metrics["images_per_second"]
                seconds = {"seconds": time.monotonic() - start, "training_seconds": training_seconds}
                epochs.append({name: round(value, 6) for name, value in (metrics | seconds).items()})
    return {"command": command, "epochs": epochs} | summary("".join(output))


def interruption(command: str, folder: Path) -> dict[str, Any]:
    """Returns the loss of each step of an uninterrupted run, and of a run that is killed and then resumed."""
    (folder / "uninterrupted").mkdir()
    (folder / "interrupted").mkdir()
    start = time.time()
    uninterrupted = run_once(command, folder / "uninterrupted", start)
    start = time.time()
    first = run_once(command, folder / "interrupted", start, KILLED_AFTER)
    if "signal" not in first:
        sys.exit(f"the run ended before it could be killed after step {KILLED_AFTER}: use more or slower steps")
    second = run_once(command, folder / "interrupted", start)
    return {"command": command, "uninterrupted": uninterrupted, "interrupted": [first, second]}


def run_once(command: str, folder: Path, start: float, killed_after: int | None = None) -> dict[str, Any]:
    """Runs train.py once, and kills it as soon as its log has the step `killed_after`, if there is one.

    Returns the losses and times of the steps, the steps of the checkpoints, and the results at the end of the run.
    """
    log, checkpoints, log_dir = None, set(), folder / "logs/tensorboard"
    logs_before, checkpoints_before = set(log_dir.rglob("events.*")), checkpoint_steps(folder)
    with running(command, folder) as process:
        while process.poll() is None:
            time.sleep(0.03)
            checkpoints |= checkpoint_steps(folder) - checkpoints_before
            new = set(log_dir.rglob("events.*")) - logs_before if killed_after and not log else None
            log = EventAccumulator(str(new.pop())) if new else log
            if log and (steps := losses(log, start)) and steps[-1]["step"] >= killed_after:
                process.kill()
        output = process.stdout.read()
    new = sorted(set(log_dir.rglob("events.*")) - logs_before)  # one of the training, and one of the test after it
    steps = [step for path in new for step in losses(EventAccumulator(str(path)), start)]
    result = {"steps": steps, "checkpoints": sorted(checkpoints)}
    if found := re.search(r"resuming from .*", output):
        result["resuming"] = found[0]
    if process.returncode < 0:
        return result | {"signal": -process.returncode, "killed_after_seconds": round(time.time() - start, 2)}
    model = (folder / re.search(r"^model +(.*)", output, re.MULTILINE)[1]).read_bytes()
    return result | summary(output) | {"model_sha256": hashlib.sha256(model).hexdigest()}


def checkpoint_steps(folder: Path) -> set[int]:
    return {int(path.stem.split("=")[1]) for path in folder.glob("logs/*/last-step=*.ckpt")}


def losses(log: EventAccumulator, start: float) -> list[dict[str, float]]:
    """Returns the logged losses. Steps count from 1, as in checkpoints; nine digits distinguish all float32 values."""
    log.Reload()
    events = log.Scalars("train_loss_step") if "train_loss_step" in log.Tags()["scalars"] else []
    return [
        {"step": event.step + 1, "loss": float(f"{event.value:.9g}"), "seconds": round(event.wall_time - start, 2)}
        for event in events
    ]


def summary(output: str) -> dict[str, Any]:
    found = re.search(r"^test accuracy +([\d.]+)% on (.*)", output, re.MULTILINE)
    return {"test_accuracy": round(float(found[1]) / 100, 4), "images": found[2].split(",")[0]}


@contextmanager
def running(command: str, folder: Path) -> Iterator[subprocess.Popen]:
    """Runs a command of the README as a process, in a folder that contains only what such a command needs."""
    for name in ("app", "examples", ".cache"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PYTHONPATH": f"examples/synthetic:examples/fast:{os.environ.get('PYTHONPATH', '')}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    words = shlex.split(command)
    with subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise
    if process.returncode > 0:
        sys.exit(f"{command} ended with exit code {process.returncode}")


def hardware() -> str:
    """Returns the name of the processor; after a run on a GPU, edit the recorded name by hand."""
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text() if os.path.exists("/proc") else "")
    name = re.sub(r"\((R|TM)\)| CPU| Processor| \d+-Core| @.*", "", names[0] if names else platform.processor())
    return f"{os.cpu_count()} cores of an {name.strip()}"


RECORDINGS = {
    "defaults": (learning_curve, "python app/train.py"),
    "fast": (learning_curve, FAST),
    "interruption": (
        interruption,
        f"{SYNTHETIC} --trainer.log_every_n_steps=1 --logger.flush_secs=1 --resume.every_n_steps=16",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=RECORDINGS)
    parser.add_argument("--results_dir", type=Path, default=ROOT / "docs/results")
    known, train_options = parser.parse_known_args()
    record, command = RECORDINGS[known.name]
    (ROOT / ".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = record(" ".join([command, *map(shlex.quote, train_options)]), Path(folder))
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    date = datetime.date.today().isoformat()
    result = {"command": result.pop("command"), "date": date, "hardware": hardware(), "versions": versions} | result
    text = json.dumps(result, indent=1)
    text = re.sub(r"\{\s+([^{}\[\]]*?)\s+\}", lambda found: "{" + " ".join(found[1].split()) + "}", text)
    (known.results_dir / f"{known.name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
