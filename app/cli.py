"""The command line of train.py: its options, where their defaults come from, and one clear line for each mistake."""

import difflib
import logging
import os
import re
import sys
import warnings
from argparse import SUPPRESS
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import torch
from checkpoints import CheckpointFiles, Checkpoints
from cifar10 import CIFAR10DataModule, SyntheticCIFAR10DataModule
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveFloat
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from messages import exit_with
from metrics import Metrics
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from resnet import ResNet18
from s3_logger import S3TensorBoardLogger
from sagemaker_env import SageMakerEnvironment, sagemaker_args
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

# Lightning's remarks on what it found and did, advertisements among them, would hide our one line.
for name in ("lightning_fabric.utilities", "pytorch_lightning.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.WARNING)
# Neither helps the reader: one is a quirk of its own, the other asks to synchronize metrics that are already.
warnings.filterwarnings("ignore", module=r"pytorch_lightning\.(utilities\._pytree|.*logger_connector\.result)")
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")

# torch's deterministic mode also fills new tensors with NaN, to help debugging: 4 % of ResNet-18's step on the CPU.
torch.utils.deterministic.fill_uninitialized_memory = False

# The classes whose options --help explains. Any other of torch goes by its name, one's own by its import path.
CLASSES = [("data", CIFAR10DataModule), ("data", SyntheticCIFAR10DataModule), ("model", ResNet18)]
CLASSES += [("optimizer", Adam), ("optimizer", SGD), ("lr_scheduler", OneCycleLR)]


class Parser(LightningArgumentParser):
    """Says in one line what jsonargparse says in many, and explains the options of CLASSES in --help."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        options = [option for parser in (self, *class_parsers().values()) for option in parser._option_string_actions]
        kinds = re.findall(r"<class '(?:\w+\.)*(\w+)|Literal\[(.*?)\]", message.split("Errors:")[0])
        names = {option.split(".")[-1]: option for option in options} | {option: option for option in options}
        if typo := re.search(r"(?:arguments: |ption ')([^\s=']+)", message):
            similar = difflib.get_close_matches(typo[1], names, 1)
            hint = f"did you mean {names[similar[0]]}?" if similar else "--help lists all options"
            message = f"there is no option {typo[1]}; {hint}"
        elif kinds and (given := re.search(r'key "([^"]+)":.*(?:Given|Got) value: (.*)', message, re.DOTALL)):
            key, value = given.groups()
            message = f"{names.get(key, f'--{key}')}={value} is not valid: it must be "
            message += " or ".join(map("".join, kinds)).replace(", ", " or ").replace("NoneType", "null")
            if known := [known.__name__ for name, known in CLASSES if name == key]:
                message += f", such as {' or '.join(known)}; --help explains more"
        elif files := re.findall(r"(?:-c|--config)[ =](\S+)", " ".join(sys.argv)):
            message += f" (in {' or '.join(files)})"
        exit_with(ValueError(re.sub(r'Parser key "([^"]+)"', r"--\1", message)))

    def format_help(self) -> str:
        sections = [f"With --{name}:\n{parser.format_help()}" for name, parser in class_parsers().items()]
        return "\n".join([super().format_help(), *sections])


def class_parsers() -> dict[str, ArgumentParser]:
    """A parser of the options of each class in CLASSES."""
    parsers = {}
    for key, known in CLASSES:
        parsers[f"{key}={known.__name__}"] = parser = ArgumentParser(usage=SUPPRESS, add_help=False)
        # The program itself gives what is skipped.
        parser.add_class_arguments(known, key, skip={"params", "optimizer", "num_classes"}, fail_untyped=False)
    return parsers


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the log folder, for `--config`, and logs it as the run's hyperparameters."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(trainer.checkpoint_callback, "resumed", None):  # the run has logged them already
            return
        for logger in trainer.loggers:
            logger.log_hyperparams({key: value for key, value in self.config.items() if value is not None})


class CLI(LightningCLI):
    """Defaults < train.yaml < --config < options, in their order; in SageMaker its folders come before the options."""

    def __init__(self):
        super().__init__(
            datamodule_class=LightningDataModule,
            subclass_mode_data=True,
            run=False,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={
                "usage": "python app/train.py [options]",
                "description": "Trains a network to classify images, tests the best one, and exports its weights.",
                "allow_abbrev": False,
                "default_config_files": [str(Path(__file__).with_name("train.yaml"))],
            },
        )

    def add_arguments_to_parser(self, parser: Parser) -> None:
        parser.add_class_arguments(S3TensorBoardLogger, "logger")
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        ckpt_path = parser.add_argument("--ckpt_path", type=str | None)
        ckpt_path.help = (
            "Checkpoint to go on from: its path, `last` also after the end of a run or with other options, `none` to "
            "start anew. By default the newest of an interrupted run with the same options, if there is one."
        )
        accept = parser.add_argument("--accept_global_batch", type=bool, default=False)
        accept.help = "Go on from a checkpoint though the number of images per step, on all processes, is another."
        parser.add_argument("--model_dir", type=str | None, help="Folder for model.pt, if not beside the checkpoints.")
        interval = parser.add_argument("--lr_scheduler_interval", type=Literal["epoch", "step"], default="epoch")
        interval.help = "How often the learning-rate scheduler steps."
        timeout = parser.add_argument("--process_group_timeout", type=PositiveFloat, default=300.0)
        timeout.help = "Seconds that processes wait for each other before they give up."
        parser.add_argument("--trainer.weights_save_path", type=str | None, help="Old name of --checkpoint.dirpath.")
        for action in parser._actions:
            # typing caches Union[float, int] and Union[int, float] as one, so that 1 (batch) could become 1.0 (all).
            if {int, float} <= set(get_args(getattr(action, "_typehint", None))):
                action._typehint = int | action._typehint
        parser.link_arguments("data.num_classes", "model.init_args.num_classes", apply_on="instantiate")

    def parse_arguments(self, parser: Parser, args: Any) -> None:
        args = sys.argv[1:]
        if TorchElasticEnvironment.detect():
            num_nodes, devices = os.environ["GROUP_WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
            args = [f"--trainer.num_nodes={num_nodes}", f"--trainer.devices={devices}", *args]
        self.config = parser.parse_args(sagemaker_args(args))
        if path := self.config.trainer.pop("weights_save_path"):
            self.config.checkpoint.dirpath = path

    def configure_optimizers(self, module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        if lr_scheduler is None:
            return optimizer
        monitor = getattr(lr_scheduler, "monitor", None)
        scheduling = {"scheduler": lr_scheduler, "interval": self.config.lr_scheduler_interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": scheduling}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        check_devices(config.accelerator, config.devices)
        if config.enable_progress_bar is None:
            config.enable_progress_bar = sys.stdout.isatty()
        timeout = self.config_init.process_group_timeout
        StrategyRegistry.register("ddp", DDPStrategy, override=True, timeout=timedelta(seconds=timeout))
        if SageMakerEnvironment.detect():
            environment = SageMakerEnvironment(timeout)
            environment.validate_settings(num_devices=1, num_nodes=config.num_nodes)
            config.plugins = [environment, *(config.plugins or [])]
        config.plugins = [CheckpointFiles(), *(config.plugins or [])]
        if config.logger is None:
            config.logger = self.config_init.logger
        if config.enable_checkpointing is False:
            self.parser.callback_keys.remove("checkpoint")
        self.metrics = self.trainer_defaults["callbacks"] = Metrics(print_epochs=not config.enable_progress_bar)
        return super().instantiate_trainer(**kwargs)


def check_devices(accelerator: str, devices: list[int] | str | int) -> None:
    """Raises ValueError, in words, for what Lightning refuses with a traceback or the CPU cannot do."""
    with warnings.catch_warnings(action="ignore"):  # of an old driver, which our own line names
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if accelerator in ("gpu", "cuda") and not has_gpu:
        try:
            torch.cuda.init()
        except (AssertionError, RuntimeError) as error:  # which says why
            raise ValueError(
                f"--trainer.accelerator={accelerator}: torch {torch.__version__}, made for CUDA {torch.version.cuda}, "
                f"finds no GPU ({error}); train on the CPU with --trainer.accelerator=cpu --trainer.devices=1"
            ) from error
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not has_gpu)
    if on_cpu and str(devices) not in ["auto", *map(str, range(1, os.cpu_count() + 1))]:
        raise ValueError(
            f"--trainer.devices={devices}: on the CPU it is a number of processes, "
            f"from 1 to the {os.cpu_count()} cores of this machine"
        )
