"""Crash-tests checkpoints: kills runs of train.py, starts them again, and compares how they end with others.

    .venv/bin/python tests/drill.py [number of kills [seed]]

The exit code is 1 if a run did not go on, hung, lost more steps than lie between two checkpoints, or ended otherwise.
"""

import contextlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).with_name("support")))

from programs import ENVIRONMENT, ROOT, SYNTHETIC
from results import as_bytes, last_checkpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toolkit import Host, free_port

TIMEOUT = 150  # seconds, after which a run counts as hung
INTERVAL = 4  # steps between two checkpoints
COMMON = (*SYNTHETIC, "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=3", "--lr_scheduler=OneCycleLR")
COMMON += ("--lr_scheduler.max_lr=0.01", "--lr_scheduler_interval=step", f"--checkpoint.every_n_train_steps={INTERVAL}")
COMMON += ("--trainer.strategy=ddp_exact",)
NETWORKS = {  # images per step, seconds that a batch takes longer, and options
    "tiny": (40, 0.03, ("--model=tiny.Tiny", "--trainer.max_epochs=3", "--lr_scheduler.total_steps=39")),
    "ResNet-18": (32, 0.0, ("--data.num_train_images=261", "--trainer.max_epochs=2", "--lr_scheduler.total_steps=10")),
}
NUM_HOSTS = {"one process": 0, "two processes": 0, "two hosts": 2}
NUM_RANKS = {"one process": 1, "two processes": 2, "two hosts": 4}
HOOKS = ("on_train_batch_start", "on_train_batch_end", "save", "on_validation_batch_end", "on_train_epoch_end")
KINDS = ("kill -9 of all", "kill -9 of one rank", "SIGTERM to all at once", "SIGTERM to all, one after the other")
KINDS += ("SIGTERM to one", *(f"kill -9 in {hook}" for hook in (*HOOKS, "on_test_start")))


class Run:
    """One start of train.py, which finds in `folder` what an earlier one has left."""

    def __init__(self, folder: Path, setup: str, network: str, *options: str):
        num_ranks, num_hosts = NUM_RANKS[setup], NUM_HOSTS[setup]
        num_images, seconds, of_network = NETWORKS[network]
        self.folder, self.step_file = folder, folder / "step"
        self.first_step_file = folder / "step.first"
        self.first_step_file.unlink(missing_ok=True)
        self.start = time.time()
        drill = ("--trainer.callbacks=tiny.Drill", f"--trainer.callbacks.file={self.step_file}")
        options = (*COMMON, *of_network, f"--data.batch_size={num_images // num_ranks}", *drill, *options)
        options += (f"--trainer.callbacks.seconds={seconds}", f"--trainer.devices={num_ranks // (num_hosts or 1)}")
        self.hosts: list[Host] = []
        if num_hosts:
            self.start_hosts(dict(option.removeprefix("--").split("=") for option in options))
        else:
            self.checkpoint_dir, self.log_dir = folder / "logs/checkpoints", folder / "logs/tensorboard"
            self.log_path = folder / "log"
            with open(self.log_path, "w") as log:
                command = [sys.executable, ROOT / "app/train.py", *options]
                streams = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
                self.processes = [subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, **streams)]

    def start_hosts(self, hyperparameters: dict[str, str]) -> None:
        """As SageMaker does: on new instances, each with the checkpoints. The second host has older ones or none."""
        attempt = len(list(self.folder.glob("attempt-*")))
        names, port = ["127.0.0.1", "127.0.0.2"], free_port()
        for name in names:
            host = Host(self.folder / f"attempt-{attempt}" / name, name, names, hyperparameters)
            earlier = self.folder / f"attempt-{attempt - (1 if name == names[0] else 2)}" / names[0] / "checkpoints"
            (host.base_dir / "checkpoints").mkdir()
            if earlier.exists():
                shutil.copytree(earlier, host.base_dir / "checkpoints", dirs_exist_ok=True)
            host.start(MASTER_PORT=port)
            self.hosts.append(host)
        self.processes = [host.process for host in self.hosts]
        self.checkpoint_dir = self.hosts[0].base_dir / "checkpoints"
        self.log_dir, self.log_path = self.hosts[0].output_dir / "data/tensorboard", self.hosts[0].log_path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        found = []
        for process in self.processes:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                for each in (parent, *parent.children(recursive=True)):
                    try:
                        if any(word.endswith("train.py") for word in each.cmdline()):
                            found.append(each)
                    except psutil.NoSuchProcess:
                        continue
        return found

    def wait_for_first_step(self) -> None:
        while not self.first_step_file.exists() and self.processes[0].poll() is None:
            time.sleep(0.01)
            if time.time() - self.start > TIMEOUT:
                raise TimeoutError(f"no step within {TIMEOUT} seconds")

    def wait(self) -> bool:
        """Whether it has ended with success. Raises TimeoutError if it hangs, and leaves no process."""
        try:
            codes = [process.wait(max(1, self.start + TIMEOUT - time.time())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"no end within {TIMEOUT} seconds") from None
        finally:
            self.kill()
        return codes == [0] * len(codes)

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def result(self) -> dict[str, Any]:
        """All that must be the same, tensors as bytes."""
        checkpoint = torch.load(last_checkpoint(self.checkpoint_dir), weights_only=False)
        names = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
        model_dir = self.hosts[0].model_dir if self.hosts else self.checkpoint_dir
        log_dirs = sorted((self.log_dir / "tutorial").iterdir())
        events = EventAccumulator(str(log_dirs[-1])).Reload()
        series = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        series["images_per_second"] = [step for step, _ in series["images_per_second"]]
        result = {name: as_bytes(checkpoint[name]) for name in names}
        result["log folders"] = [log_dir.name for log_dir in log_dirs]
        return result | {"model.pt": (model_dir / "model.pt").read_bytes(), "TensorBoard": series}


@dataclass
class Interruption:
    setup: str
    network: str
    kind: str
    is_resumed: bool = False
    differences: str = ""
    num_steps_lost: int = 0
    seconds_to_recover: float = 0.0


@cache
def uninterrupted(folder: Path, setup: str, network: str) -> tuple[dict[str, Any], float]:
    """The result, and the seconds from the first step to the last."""
    (folder / f"{setup}, {network}").mkdir()
    run = Run(folder / f"{setup}, {network}", setup, network)
    assert run.wait(), run.log
    return run.result(), run.step_file.stat().st_mtime - run.first_step_file.stat().st_mtime


def interrupt(run: Run, kind: str, seconds: float, numbers: random.Random) -> int:
    """Does to a run what it does not do to itself; the step that it had done before."""
    run.wait_for_first_step()
    if kind.startswith("kill -9 in"):
        return 0
    time.sleep(numbers.uniform(0, seconds))
    ranks, step = run.ranks(), int(run.step_file.read_text())
    if "SIGTERM" in kind and run.hosts:
        ranks = [psutil.Process(process.pid) for process in run.processes if process.poll() is None]  # entrypoints
    chosen = [numbers.choice(ranks)] if ranks and "one" in kind.split()[-2:] else ranks
    for process in chosen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL if "kill" in kind else signal.SIGTERM)
        if "after the other" in kind:
            time.sleep(numbers.uniform(0.1, 1.5))
    return step


def crash_test(interruption: Interruption, folder: Path, numbers: random.Random) -> None:
    """Starts a run, interrupts it, sometimes twice, starts it again, and compares."""
    expected, seconds = uninterrupted(folder, interruption.setup, interruption.network)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name)
        options, last_step = [], len(expected["TensorBoard"]["images_per_second"])
        if "kill -9 in" in interruption.kind:
            hook = interruption.kind.split()[-1]
            early = hook.startswith("on_train_batch") and numbers.random() < 0.5  # the very first steps
            step = numbers.randrange(0, 2 if early else expected["global_step"])
            rank = numbers.randrange(NUM_RANKS[interruption.setup])
            values = {"hook": hook, "step": min(step, expected["global_step"] - last_step), "rank": rank}
            options = [f"--trainer.callbacks.{key}={value}" for key, value in values.items()]
        for _ in range(numbers.choice((1, 1, 1, 2))):
            run = Run(path, interruption.setup, interruption.network, *options)
            try:
                step = interrupt(run, interruption.kind, seconds, numbers)
                if run.wait() or list(run.checkpoint_dir.glob("*.ended")):
                    assert step == expected["global_step"], f"not interrupted at step {step}: {run.log}"
                    return crash_test(interruption, folder, numbers)  # it came too late
            finally:
                run.kill()
            reached = int(run.step_file.read_text()) if run.step_file.exists() else 0
        run = Run(path, interruption.setup, interruption.network)
        try:
            run.wait_for_first_step()
            interruption.seconds_to_recover = time.time() - run.start
            interruption.is_resumed = run.wait()
            found = re.search(r"going on from .* step (\d+)", run.log)
            interruption.num_steps_lost = reached - (int(found[1]) if found else 0)
            result = run.result() if interruption.is_resumed else {}
            if not found:  # each start before the first checkpoint makes a log folder of its own
                result |= {"log folders": expected["log folders"]}
            interruption.differences = ", ".join(name for name in expected if result.get(name) != expected[name])
        except TimeoutError as error:
            interruption.differences = str(error)
        finally:
            run.kill()
        if interruption.differences or not interruption.is_resumed:
            print(run.log)


def plan(num_interruptions: int, numbers: random.Random) -> list[Interruption]:
    """Each kind in turn, with a network and a number of processes in turn, the quick ones most often."""
    setups = ["one process"] * 3 + ["two processes"] * 2 + ["two hosts"]
    interruptions = []
    while len(interruptions) < num_interruptions:
        kinds = list(KINDS)
        numbers.shuffle(kinds)
        for kind in kinds:
            setup = setups[len(interruptions) % len(setups)]
            network = "ResNet-18" if kind.endswith("save") or len(interruptions) % 4 == 3 else "tiny"
            if setup == "one process" and ("one" in kind.split()[-2:] or kind.endswith(("one", "other"))):
                setup = "two processes"
            interruptions.append(Interruption(setup, network, kind))
    return interruptions[:num_interruptions]


def main() -> None:
    num_interruptions, seed = [*map(int, sys.argv[1:]), *(20, 0)[len(sys.argv) - 1 :]]
    numbers = random.Random(seed)
    interruptions = plan(num_interruptions, numbers)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # what it purges is what is to be seen
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for number, interruption in enumerate(interruptions, 1):
            where = f"{number:3} {interruption.setup:14}{interruption.network:10}{interruption.kind:36}"
            try:
                crash_test(interruption, Path(folder), numbers)
            except (TimeoutError, AssertionError) as error:
                interruption.differences = str(error)
            outcome = "bit-exact" if interruption.is_resumed and not interruption.differences else "FAILED"
            times = f"{interruption.num_steps_lost:3} steps lost, {interruption.seconds_to_recover:3.0f} s to recover"
            print(f"{where} {outcome:10}{times} {interruption.differences}", flush=True)
    lost = [interruption.num_steps_lost for interruption in interruptions]
    exact = [interruption for interruption in interruptions if interruption.is_resumed and not interruption.differences]
    seconds = [interruption.seconds_to_recover for interruption in interruptions]
    print(f"""
interruptions       {len(interruptions)} in {(time.time() - start) / 60:.0f} minutes
resumed             {sum(interruption.is_resumed for interruption in interruptions)}
bit-exact           {len(exact)}
steps lost          {max(lost)} at most, {mean(lost):.1f} on average; {INTERVAL} lie between two checkpoints
seconds to recover  {max(seconds):.0f} at most, {mean(seconds):.0f} on average, most of them for imports""")
    sys.exit(len(exact) < len(interruptions) or max(lost) > INTERVAL)


if __name__ == "__main__":
    main()
