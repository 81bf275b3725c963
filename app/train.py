"""Trains a network to classify images, tests the best one, and exports its weights.

On what there is, on CIFAR-10:   python app/train.py
On all GPUs of this machine:     python app/train.py --trainer.accelerator=gpu --trainer.devices=-1
In two processes on the CPU:     python app/train.py --trainer.accelerator=cpu --trainer.devices=2
On synthetic images:             python app/train.py --data=SyntheticCIFAR10DataModule
Going on from where it stopped:  python app/train.py --ckpt_path=last
Repeating a run:                 python app/train.py --config=logs/tensorboard/tutorial/version_0/config.yaml
"""

import errno
import math
import os
import shutil
import sys
from pathlib import Path

import torch
from cli import CLI, exit_with
from files import check_writable, save_atomically
from lightning_fabric.utilities.exceptions import MisconfigurationException
from s3_logger import S3TensorBoardLogger
from sagemaker_env import report_failure
from torch.distributed import DistNetworkError, DistStoreError


def main() -> None:
    try:
        cli = CLI()
        ckpt_path = prepare(cli)
    except (ValueError, OSError, MisconfigurationException) as error:
        exit_with(error)
    try:
        train(cli, ckpt_path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        exit_with(error)
    except (DistNetworkError, DistStoreError) as error:
        limit = f"--process_group_timeout={cli.config.process_group_timeout:g} seconds"
        exit_with(TimeoutError(f"the processes have not found, or have lost, each other within {limit}: {error}"))


def prepare(cli: CLI) -> str | None:
    """Checks what can be wrong outside of the program, before anything is written; the checkpoint to go on from."""
    config = cli.config
    for directory in (config.logger.save_dir, config.checkpoint.dirpath, config.model_dir):
        if directory and "://" not in str(directory):
            check_writable(directory)
    if config.logger.save_dir.startswith("s3://") and not config.checkpoint.dirpath:
        raise ValueError("--checkpoint.dirpath=null is the log's folder, but the log goes to S3: name a folder")
    ckpt_path = config.ckpt_path
    if ckpt_path == "last":
        ckpt_path = os.path.join(config.checkpoint.dirpath or "", "last.ckpt")
    if ckpt_path and not os.path.exists(ckpt_path):
        raise ValueError(
            f"--ckpt_path={config.ckpt_path}: there is no {ckpt_path} to go on from; leave the option out to start anew"
        )
    if cli.trainer.local_rank == 0:
        if isinstance(cli.trainer.logger, S3TensorBoardLogger):
            cli.trainer.logger.check()
        cli.datamodule.prepare_data()
    return ckpt_path


def train(cli: CLI, ckpt_path: str | None) -> None:
    """Fits, tests the checkpoint with the least val_loss, exports its weights, and says where everything is."""
    trainer, model = cli.trainer, cli.model
    trainer.fit(model, cli.datamodule, ckpt_path=ckpt_path)
    best_model_path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if best_model_path and trainer.is_global_zero:  # only its host has the file; DDP sends the weights to the others
        model.load_state_dict(torch.load(best_model_path, map_location="cpu", weights_only=False)["state_dict"])
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


if __name__ == "__main__":
    try:
        main()
    except Exception as error:
        report_failure(f"{type(error).__name__}: {error}")
        raise
