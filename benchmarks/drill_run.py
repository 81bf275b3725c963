"""Runs of train.py for the drill: in one process, in two, or on simulated SageMaker hosts with checkpoint agents."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from fake_aws.checkpoint_agent import CheckpointAgent
from fake_aws.toolkit import Host, free_port
from runs.programs import ENVIRONMENT, ROOT, SYNTHETIC
from runs.results import as_bytes, last_checkpoint, scalars

TIMEOUT = 150  # seconds after which a run counts as hung
INTERVAL = 4  # steps between two checkpoints
AGENT_SECONDS = 0.5  # longest delay of a slow copy: several checkpoint intervals
COMMON = (*SYNTHETIC, "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=3", "--lr_scheduler=OneCycleLR")
COMMON += ("--lr_scheduler.max_lr=0.01", "--lr_scheduler_interval=step", f"--resume.every_n_steps={INTERVAL}")
COMMON += ("--trainer.strategy=ddp_exact",)
NETWORKS = {  # images per step, seconds added to each batch, and options
    "tiny": (40, 0.03, ("--model=tiny.Tiny", "--trainer.max_epochs=3", "--lr_scheduler.total_steps=39")),
    "ResNet-18": (32, 0.0, ("--data.num_train_images=261", "--trainer.max_epochs=2", "--lr_scheduler.total_steps=10")),
}
NUM_HOSTS = {"one process": 0, "two processes": 0, "two hosts": 2, "four on two hosts": 2}
NUM_RANKS = {"one process": 1, "two processes": 2, "two hosts": 2, "four on two hosts": 4}


class Run:
    """A start of train.py in `folder`, where it resumes an earlier run if there is one.

    If it `vanishes`, a kill also stops the checkpoint agents, as when the hosts are lost; otherwise they still copy.
    """

    def __init__(self, folder: Path, setup: str, network: str, *options: str, vanishes: bool = True):
        num_ranks, num_hosts = NUM_RANKS[setup], NUM_HOSTS[setup]
        num_images, seconds, network_options = NETWORKS[network]
        if num_hosts:
            seconds = max(seconds, 0.08)  # long enough for the agent to copy deletions
        self.folder, self.step_file = folder, folder / "step"
        self.first_step_file = folder / "step.first"
        self.first_step_file.unlink(missing_ok=True)
        self.start = time.time()
        drill = ("--trainer.callbacks=tiny.Drill", f"--trainer.callbacks.file={self.step_file}")
        options = (*COMMON, *network_options, f"--data.batch_size={num_images // num_ranks}", *drill, *options)
        options += (f"--trainer.callbacks.seconds={seconds}", f"--trainer.devices={num_ranks // (num_hosts or 1)}")
        self.hosts: list[Host] = []
        self.agents: list[CheckpointAgent] = []
        self.store, self.gone_file = folder / "store", folder / "step.killed"
        self.gone_file.unlink(missing_ok=True)
        self.agent_gone_file = self.gone_file if vanishes else folder / "never"
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
        """Starts new hosts as SageMaker does, each with the checkpoints that the agents have copied so far."""
        attempt = self.folder / f"attempt-{len(list(self.folder.glob('attempt-*')))}"
        names, port = ["127.0.0.1", "127.0.0.2"], free_port()
        hyperparameters["trainer.callbacks.seconds_before_deletion"] = str(4 * AGENT_SECONDS)
        for name in names:
            checkpoint_dir = attempt / f"checkpoints-{name}"
            self.agents.append(CheckpointAgent(checkpoint_dir, self.store, self.agent_gone_file, AGENT_SECONDS))
            self.hosts.append(Host(attempt / name, name, names, hyperparameters, checkpoint_dir=checkpoint_dir))
        for host, agent in zip(self.hosts, self.agents, strict=True):
            host.start(MASTER_PORT=port)
            agent.start()
        self.processes = [host.process for host in self.hosts]
        self.checkpoint_dir = attempt / f"checkpoints-{names[0]}"
        self.log_dir, self.log_path = self.hosts[0].output_dir / "data/tensorboard", self.hosts[0].log_path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ranks(self) -> list[psutil.Process]:
        """Returns the training processes."""
        found = []
        for process in self.processes:
            if process.poll() is None:
                parent = psutil.Process(process.pid)
                for each in (parent, *parent.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if any(word.endswith("train.py") for word in each.cmdline()):
                            found.append(each)
        return found

    def wait_for_first_step(self) -> None:
        while not self.first_step_file.exists() and self.processes[0].poll() is None:
            time.sleep(0.01)
            if time.time() - self.start > TIMEOUT:
                raise TimeoutError(f"no step within {TIMEOUT} seconds")

    def wait(self) -> bool:
        """Waits for all processes and returns whether they succeeded.

        Raises:
            TimeoutError: The run hangs. No process is left.
        """
        try:
            codes = [process.wait(max(1, self.start + TIMEOUT - time.time())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"not finished within {TIMEOUT} seconds") from None
        finally:
            self.kill()
        return codes == [0] * len(codes)

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for agent in self.agents:
            agent.finish()

    def result(self) -> dict[str, Any]:
        """Returns everything that must be the same in two runs, with tensors as bytes."""
        checkpoint = torch.load(last_checkpoint(self.checkpoint_dir), weights_only=False)
        names = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "epoch", "global_step")
        model_dir = self.hosts[0].model_dir if self.hosts else self.checkpoint_dir
        log_dirs = sorted((self.log_dir / "tutorial").iterdir())
        series = scalars(log_dirs[-1])
        series["images_per_second"] = [step for step, _ in series["images_per_second"]]
        result = {name: as_bytes(checkpoint[name]) for name in names}
        result["log folders"] = [log_dir.name for log_dir in log_dirs]
        return result | {"model.pt": (model_dir / "model.pt").read_bytes(), "TensorBoard": series}
