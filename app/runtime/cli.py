"""The command line of a training program: its options, where their defaults come from, one clear line for a mistake."""

import logging
import os
import pydoc
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat
from lightning_fabric.plugins.environments import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI, SaveConfigCallback
from sagemaker_env import SageMakerEnvironment, in_sagemaker, join_values, sagemaker_defaults
from torch.optim import Optimizer

from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.devices import check_devices, register_strategies
from runtime.errors import BadInput, warn
from runtime.files import check_writable
from runtime.parser import Parser
from runtime.report import Report
from runtime.resume import Resume
from runtime.s3_logger import S3TensorBoardLogger

# Lightning's remarks on what it found and did, advertisements among them, would hide our one line.
for name in ("lightning_fabric.utilities", "pytorch_lightning.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.WARNING)
# Neither helps the reader: one is a quirk of Lightning's own, the other asks to synchronize metrics that are already.
warnings.filterwarnings("ignore", module=r"pytorch_lightning\.(utilities\._pytree|.*logger_connector\.result)")
warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")

# torch's deterministic mode also fills new tensors with NaN, to help debugging: 4 % of ResNet-18's step on the CPU.
torch.utils.deterministic.fill_uninitialized_memory = False

# Two runs with other values here are not the same run.
OPTIONS_OF_A_RUN = ("seed_everything", "data", "model", "optimizer", "lr_scheduler", "lr_scheduler_interval")


def checkpoint_options(
    dirpath: str | None = None,
    every_n_train_steps: NonNegativeInt = 0,
    every_n_minutes: NonNegativeFloat = 5.0,
    **kwargs: Any,
) -> tuple[dict[str, Any], BestNetwork]:
    """The options --checkpoint.…, for the class Resume and for the best network.

    Args:
        dirpath: Folder of the checkpoints; null is the log's.
        every_n_train_steps: Least number of steps between two checkpoints inside an epoch; 0 is no limit.
        every_n_minutes: Least minutes between two checkpoints inside an epoch; 0 is no limit.
        **kwargs: As for ModelCheckpoint, for the best network.
    """
    intervals = {"every_n_train_steps": every_n_train_steps, "every_n_minutes": every_n_minutes}
    best = BestNetwork(
        dirpath, save_last=None, save_weights_only=False, save_on_exception=False, train_time_interval=None, **kwargs
    )
    return {"dirpath": dirpath} | intervals, best


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the log folder, for `--config`, and logs it as the run's hyperparameters."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if any(isinstance(callback, Resume) and callback.found for callback in trainer.callbacks):
            return  # the run has logged them already
        for logger in trainer.loggers:
            logger.log_hyperparams({key: value for key, value in self.config.items() if value is not None})


class CLI(LightningCLI):
    """Defaults < the program's YAML < --config < options, in their order; SageMaker's folders come before the options.

    Args:
        defaults: YAML file of what the program does unless told otherwise.
        known_classes: For options that name a class, such as "data" and "model": the classes that --help explains.
        description: What --help says first.

    Raises:
        BadInput: The options, the machine or the data do not allow the run. Nothing has been written then.
    """

    def __init__(self, defaults: Path, known_classes: dict[str, list[type]], description: str):
        self.defaults = f"--config={defaults}"
        Parser.known_classes = known_classes
        try:
            super().__init__(
                datamodule_class=LightningDataModule,
                subclass_mode_data=True,
                run=False,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True},
                parser_class=Parser,
                parser_kwargs={
                    "usage": "python app/train.py [options]",
                    "description": description,
                    "allow_abbrev": False,
                },
            )
            self._check()
        except (ValueError, OSError, MisconfigurationException) as error:
            raise BadInput(str(error)) from error

    def add_arguments_to_parser(self, parser: Parser) -> None:
        parser.add_class_arguments(S3TensorBoardLogger, "logger")
        parser.add_function_arguments(checkpoint_options, "checkpoint")
        ckpt_path = parser.add_argument("--ckpt_path", type=str | None)
        ckpt_path.help = (
            "Checkpoint to go on from: its path, `last` also after the end of a run or with other options, `none` to "
            "start anew. By default the newest of an interrupted run with the same options, if there is one."
        )
        parser.add_argument("--model_dir", type=str | None, help="Folder for model.pt, if not beside the checkpoints.")
        interval = parser.add_argument("--lr_scheduler_interval", type=Literal["epoch", "step"], default="epoch")
        interval.help = "How often the learning-rate scheduler steps."
        timeout = parser.add_argument("--process_group_timeout", type=PositiveFloat, default=300.0)
        timeout.help = "Seconds that processes wait for each other before they give up."
        parser.add_argument("--trainer.weights_save_path", type=str | None, help="Old name of --checkpoint.dirpath.")
        parser.read_whole_numbers_as_such()

    def parse_arguments(self, parser: Parser, args: Any) -> None:
        args = join_values(sys.argv[1:])
        if TorchElasticEnvironment.detect():
            num_nodes, devices = os.environ["GROUP_WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]
            args = [f"--trainer.num_nodes={num_nodes}", f"--trainer.devices={devices}", *args]
        # In SageMaker, YAML files yield to its folders.
        files = [self.defaults, *(arg for arg in args if in_sagemaker() and arg.startswith("--config="))]
        options = [arg for arg in args if arg not in files]
        first = parser.parse_args([*files, *(arg for arg in options if not arg.startswith("--print_config"))])
        self.data_class, model_class = (pydoc.locate(first[name].class_path) for name in ("data", "model"))
        defaults = sagemaker_defaults()
        if hasattr(self.data_class, "num_classes"):
            defaults["model.num_classes"] = self.data_class.num_classes
        channel = defaults.get("data.data_dir")
        for name, value in defaults.items():
            group, _, argument = name.partition(".")
            if group in ("data", "model"):
                if argument in first[group].get("init_args", {}):  # which a class without arguments does not have
                    files += [f"--{group}={first[group].class_path}", f"--{name}={value}"]
            else:
                files.append(f"--{name}={value}")
        is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        has_data_dir = "data_dir" in first.data.get("init_args", {})
        is_given = has_data_dir or any(str(channel) in option for option in options)
        if channel and is_first and not is_given:
            warn(
                f"the data module {self.data_class.__name__} takes no data_dir: give it SageMaker's folder yourself, "
                f"such as --hyperparams data.root={channel}"
            )
        self.config = parser.parse_args([*files, *options])  # with --print_config it ends here
        if path := self.config.trainer.pop("weights_save_path"):
            self.config.checkpoint.dirpath = path
        self.auto_configure_optimizers = model_class.configure_optimizers is LightningModule.configure_optimizers
        if is_first and not self.auto_configure_optimizers:
            print(f"{model_class.__name__} configures its optimizers itself: --optimizer is not used", flush=True)

    def configure_optimizers(self, module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        if lr_scheduler is None:
            return optimizer
        monitor = getattr(lr_scheduler, "monitor", None)
        scheduling = {"scheduler": lr_scheduler, "interval": self.config.lr_scheduler_interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": scheduling}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config, timeout = self.config_init.trainer, self.config_init.process_group_timeout
        check_devices(config.accelerator, config.devices)
        if config.enable_progress_bar is None:
            config.enable_progress_bar = sys.stdout.isatty()
        register_strategies(timeout)
        if SageMakerEnvironment.detect():
            environment = SageMakerEnvironment(timeout)
            environment.validate_settings(num_devices=1, num_nodes=config.num_nodes)
            config.plugins = [environment, *(config.plugins or [])]
        config.plugins = [CheckpointFiles(), *(config.plugins or [])]
        if config.logger is None:
            config.logger = self.config_init.logger
        self.trainer_defaults["callbacks"] = self._callbacks(not config.enable_progress_bar, timeout)
        config.enable_checkpointing = True  # Lightning counts Report as a checkpoint, too
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, print_epochs: bool, timeout: float) -> list[Callback]:
        self.best = self.resume = None
        if self.config_init.trainer.enable_checkpointing is False:
            return [Report(print_epochs)]
        resume_options, self.best = checkpoint_options(**self.config_init.checkpoint)
        self.resume = Resume(**resume_options, timeout=timeout)
        may_change = getattr(self.data_class, "may_change", ())
        for name in OPTIONS_OF_A_RUN:
            value = self.config.get(name)
            for key, item in (value.as_dict() if hasattr(value, "as_dict") else {"": value}).items():
                items = item.items() if key == "init_args" else [(key, item)]
                self.resume.options |= {f"{name} {inner}".strip(): each for inner, each in items}
        for name in may_change:
            self.resume.options.pop(f"data {name}", None)
        return [self.best, Report(print_epochs), self.resume]

    def _check(self) -> None:
        """Checks what can be wrong outside of the program, before anything is written; finds where to go on."""
        config, trainer = self.config, self.trainer
        for directory in (config.logger.save_dir, config.checkpoint.dirpath, config.model_dir):
            if directory and "://" not in str(directory):
                check_writable(directory)
        if config.logger.save_dir.startswith("s3://") and not config.checkpoint.dirpath:
            raise ValueError("--checkpoint.dirpath=null is the log's folder, but the log goes to S3: name a folder")
        environment = getattr(trainer.strategy, "cluster_environment", None)
        is_first = not ((environment and environment.node_rank()) or trainer.local_rank)  # Lightning's is not known yet
        if self.resume and is_first and not trainer.fast_dev_run:
            self.resume.find(trainer, self.model, config.ckpt_path)
        if trainer.local_rank == 0:
            for part in (*trainer.loggers, self.datamodule):
                if hasattr(part, "check"):
                    part.check()

    @property
    def checkpoint_dir(self) -> str:
        return self.config.checkpoint.dirpath or (self.best.dirpath if self.best else self.trainer.default_root_dir)

    def load_best_network(self) -> None:
        """Gives the model the weights of the best network, as far as there is one; otherwise a line says why not."""
        if self.best:
            self.best.load(self.trainer, self.model)

    def places(self) -> dict[str, str]:
        """Where the run's files are, and how to look at its curves. All of the log is there then."""
        log_dir, tensorboard = "", shutil.which("tensorboard") or Path(sys.executable).with_name("tensorboard")
        for logger in self.trainer.loggers:
            log_dir = logger.finish() if hasattr(logger, "finish") else logger.log_dir
        command = f"which this command shows:\n{tensorboard} --logdir {self.config.logger.save_dir}"
        logs = {"TensorBoard logs": f"{log_dir}, {command}"} if log_dir else {}
        return {"checkpoints": self.checkpoint_dir} | logs

    def end(self) -> None:
        """Ends a run of which nothing is left to do; its last checkpoint says so."""
        self.trainer.strategy.barrier()  # local mode ends all hosts with the first
        if self.resume:
            self.resume.end(self.trainer)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
