"""Trains a network to classify images, tests the best one, and exports its weights.

On what there is, on CIFAR-10:   python app/train.py
On all GPUs of this machine:     python app/train.py --trainer.accelerator=gpu --trainer.devices=-1
In two processes on the CPU:     python app/train.py --trainer.accelerator=cpu --trainer.devices=2
On synthetic images:             python app/train.py --data=SyntheticCIFAR10DataModule
Going on after its end:          python app/train.py --ckpt_path=last --trainer.max_epochs=10
Repeating a run:                 python app/train.py --config=logs/tensorboard/tutorial/version_0/config.yaml
"""

import contextlib
import errno
import math
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch
from checkpoints import Checkpoints, Interrupted, describe, find_checkpoint, finish
from cli import CLI
from files import check_writable, save_atomically
from lightning_fabric.utilities.exceptions import MisconfigurationException
from messages import exit_with, warn
from s3_logger import S3TensorBoardLogger
from sagemaker_env import report_failure
from torch.distributed import DistError


def main() -> None:
    try:
        cli = CLI()
        prepare(cli)
    except (ValueError, OSError, MisconfigurationException) as error:
        exit_with(error)
    try:
        train(cli)
    except Interrupted as error:
        (signum,) = error.args
        end(cli, f"stopped by {signal.Signals(signum).name} after step {{}}; the same command goes on", 128 + signum)
    except FloatingPointError as error:
        end(cli, f"{error}: try a smaller learning rate; the last checkpoint is of step {{}}", 1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        exit_with(error)
    except RuntimeError as error:
        if not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        limit = f"--process_group_timeout={cli.config.process_group_timeout:g} seconds"
        if lost := lost_ranks():
            names = f"rank {' and '.join(map(str, lost))} of {torch.distributed.get_world_size()}"
            exit_with(TimeoutError(f"{names} has ended, or has not answered within {limit}: {error}"), 1)
        exit_with(TimeoutError(f"the processes have not found, or have lost, each other within {limit}: {error}"))


def lost_ranks() -> list[int]:
    """The ranks that do not tell the others within seconds that they, too, have noticed that one is missing."""
    if not torch.distributed.is_initialized():
        return []
    store = torch.distributed.distributed_c10d._get_default_store()
    lost = [0]  # which serves the store: if it is stopped, asking takes for ever

    def ask() -> None:
        with contextlib.suppress(DistError):
            store.set(f"alive/{torch.distributed.get_rank()}", "")
            for _ in range(30):
                lost[:] = [
                    rank for rank in range(torch.distributed.get_world_size()) if not store.check([f"alive/{rank}"])
                ]
                if not lost:
                    break
                time.sleep(0.1)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(6)
    return lost


def end(cli: CLI, message: str, code: int) -> NoReturn:
    """Ends all ranks, which have agreed on it, with one line of each host, and the step of the last checkpoint."""
    if cli.trainer.local_rank:
        sys.exit(0)  # Lightning would kill local rank 0, while that still tells what has happened
    step = getattr(cli.trainer.checkpoint_callback, "last_step", 0)
    exit_with(RuntimeError(message.format(step)), code)


def prepare(cli: CLI) -> None:
    """Checks what can be wrong outside of the program, before anything is written; finds where to go on."""
    config = cli.config
    for directory in (config.logger.save_dir, config.checkpoint.dirpath, config.model_dir):
        if directory and "://" not in str(directory):
            check_writable(directory)
    if config.logger.save_dir.startswith("s3://") and not config.checkpoint.dirpath:
        raise ValueError("--checkpoint.dirpath=null is the log's folder, but the log goes to S3: name a folder")
    environment = getattr(cli.trainer.strategy, "cluster_environment", None)
    checkpoints = cli.trainer.checkpoint_callback
    rank = environment.node_rank() or cli.trainer.local_rank if environment else 0  # Lightning's is not known yet
    if isinstance(checkpoints, Checkpoints) and not rank and not cli.trainer.fast_dev_run:
        checkpoints.run = describe(config, cli.trainer.num_nodes * cli.trainer.num_devices)
        directory = Path(config.checkpoint.dirpath) if config.checkpoint.dirpath else None
        checkpoints.resumed = find_checkpoint(directory, config.ckpt_path, cli.model, checkpoints.run)
        continue_log(cli)
    if cli.trainer.local_rank == 0:
        if isinstance(cli.trainer.logger, S3TensorBoardLogger):
            cli.trainer.logger.check()
        cli.datamodule.prepare_data()


def continue_log(cli: CLI) -> None:
    """The log of the run that goes on is continued, unless this one has another place for it."""
    checkpoints, logger = cli.trainer.checkpoint_callback, cli.trainer.logger
    if not checkpoints.resumed or not isinstance(logger, S3TensorBoardLogger):
        return
    run, known = checkpoints.resumed["run"], (None, os.environ.get("TRAINING_JOB_NAME"))
    if run["log"] == checkpoints.run["log"] and cli.config.logger.version in known and "log_version" in run:
        logger.resume(run["log_version"], checkpoints.resumed["global_step"], run["log_files"])


def train(cli: CLI) -> None:
    """Fits, tests the checkpoint with the least val_loss, exports its weights, and says where everything is."""
    trainer, model = cli.trainer, cli.model
    trainer.fit(model, cli.datamodule)
    best_model_path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best_model_path and trainer.is_global_zero:  # only its host has the file; DDP sends the weights to the others
        if os.path.exists(best_model_path):
            model.load_state_dict(torch.load(best_model_path, map_location="cpu", weights_only=False)["state_dict"])
        else:
            warn(f"{best_model_path} has gone: the last network is tested and exported, not the best")
    trainer.test(model, cli.datamodule, verbose=False)
    log_dir = trainer.log_dir  # a collective operation
    checkpoint_dir = cli.config.checkpoint.dirpath or log_dir
    model_path = Path(cli.config.model_dir or checkpoint_dir, "model.pt")
    if trainer.is_global_zero:
        network = getattr(model, "network", model)
        save_atomically({name: weight.cpu() for name, weight in network.state_dict().items()}, model_path)
        if isinstance(trainer.logger, S3TensorBoardLogger):
            log_dir = trainer.logger.finish()  # before the last barrier: local mode ends all hosts with the first
        tensorboard = shutil.which("tensorboard") or Path(sys.executable).with_name("tensorboard")
        print(f"""
test accuracy     {trainer.callback_metrics.get("test_acc", math.nan):.1%} on {cli.datamodule.description}
speed             {cli.metrics.images_per_second:.0f} images per second in training
model             {model_path}
checkpoints       {checkpoint_dir}
TensorBoard logs  {log_dir}, which this command shows:
                  {tensorboard} --logdir {cli.config.logger.save_dir}""")
    trainer.strategy.barrier()
    if trainer.is_global_zero and isinstance(trainer.checkpoint_callback, Checkpoints):
        if error := trainer.strategy.checkpoint_io.error:
            exit_with(OSError(f"the last checkpoint could not be written: {error}"), 1)
        if "SM_HOSTS" not in os.environ and not trainer.fast_dev_run:  # SageMaker may repeat a job
            finish(Path(trainer.checkpoint_callback.dirpath))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before there is anything to save
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        report_failure(f"{type(error).__name__}: {error}")
        raise
