"""The command line of a training program: its options, and where their defaults come from."""

import logging
import pydoc
import re
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, register_type
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor, ProgressBar
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from pytorch_lightning.utilities.model_helpers import is_overridden
from sagemaker_env import channel_dir, checkpoint_dir, hosts, in_sagemaker, model_dir, output_dir, set_up_hosts
from torch.optim import Optimizer

from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.errors import exit_with, local_rank
from runtime.files import check_writable
from runtime.parser import Parser, explain_cause
from runtime.report import Report
from runtime.resume import Resume, StopSignal
from runtime.tensorboard_log import TensorBoardLog

# Lightning's tips would bury our one-line messages.
for name in ("lightning_fabric.utilities", "pytorch_lightning.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.WARNING)
# These warnings are about Lightning's own code, or about intended behavior.
warnings.filterwarnings("ignore", module=r"pytorch_lightning\.(utilities\._pytree|.*logger_connector\.result)")
for text in ("Checkpoint directory .* is not empty", "Total length of `list`", "Precision .* model summary"):
    warnings.filterwarnings("ignore", message=text)

register_type(torch.device)  # otherwise the saved config of StochasticWeightAveraging is invalid

# Deterministic mode also fills uninitialized memory, for debugging, which costs 4% of ResNet-18's step on
# the CPU.
torch.utils.deterministic.fill_uninitialized_memory = False

CKPT_PATH = """Checkpoint to resume from: a path, `last` (the newest, even of a finished or different run), or
`none`. By default, an interrupted run with the same data, model, optimizer, scheduler and seed is resumed."""
# Former names of options, which keep working.
NEW_NAMES = {
    "--trainer.weights_save_path": "--checkpoint.dirpath",
    "--checkpoint.every_n_minutes": "--resume.every_n_minutes",
    "--checkpoint.every_n_train_steps": "--resume.every_n_steps",
}
# A run resumes only with the same values of these options.
RUN_OPTIONS = ("seed_everything", "data", "model", "optimizer", "lr_scheduler", "lr_scheduler_interval")


class CLI(LightningCLI):
    """Parses the options and creates trainer, model and data module.

    Invalid options end the program with a one-line error.
    Precedence, from lowest to highest: the classes' defaults, the YAML file `defaults`, --config, SageMaker's
    folders, options on the command line. Outside SageMaker, --config and the options are applied in the order
    given.

    Args:
        defaults: YAML file with the defaults of the program.
        purpose: Text at the start of --help.
    """

    def __init__(self, defaults: Path, purpose: str):
        self.defaults = f"--config={defaults}"
        usage = f"python app/train.py [options]\n\n{purpose}"
        try:
            super().__init__(
                run=False,
                save_config_kwargs={"overwrite": True},
                parser_class=Parser,
                parser_kwargs={"usage": usage, "description": None, "allow_abbrev": False},
            )
            self._check_before_training()
        except (ValueError, OSError, ImportError) as error:
            exit_with(explain_cause(error), 2)

    def add_arguments_to_parser(self, parser: Parser) -> None:
        parser.add_class_arguments(TensorBoardLog, "logger")
        fixed = {"save_last", "save_weights_only", "save_on_exception", "every_n_train_steps", "train_time_interval"}
        parser.add_class_arguments(BestNetwork, "checkpoint", skip=fixed)
        add = parser.add_argument
        add("--ckpt_path", type=str | None, help=CKPT_PATH)
        add("--model_dir", type=str | None, help="Folder of model.pt (default: --checkpoint.dirpath).")
        add("--lr_scheduler_interval", type=Literal["epoch", "step"], default="epoch", help="When the scheduler steps.")
        add("--resume.every_n_minutes", type=NonNegativeFloat, default=5.0, help="Checkpoint interval; 0 disables it.")
        add("--resume.every_n_steps", type=NonNegativeInt, default=0, help="Checkpoint interval; 0 disables it.")
        add("--process_group_timeout", type=PositiveFloat, default=300.0, help="Seconds to wait for other ranks.")

    def parse_arguments(self, parser: Parser, args: Any) -> None:
        args = join_values(sys.argv[1:])
        args = [re.sub("^[^=]+", lambda name: NEW_NAMES.get(name[0], name[0]), arg) for arg in args]
        # In SageMaker, YAML files have a lower precedence than SageMaker's folders.
        recipes = [arg for arg in args if in_sagemaker() and arg.startswith("--config=")]
        options = [arg for arg in args if arg not in recipes]
        defaults = [self.defaults, *recipes, *(sagemaker_options() if in_sagemaker() else [])]
        checked = [arg for arg in options if not arg.startswith("--print_config")]
        preliminary = parser.parse_args([*defaults, *checked])
        num_nodes = preliminary.trainer.num_nodes
        if in_sagemaker() and num_nodes != len(hosts()):
            raise ValueError(f"--trainer.num_nodes={num_nodes}: expected {len(hosts())}, the number of hosts")
        self.model_class = pydoc.locate(preliminary.model.class_path)
        if not isinstance(self.model_class, type):
            raise ValueError(f"--model={preliminary.model.class_path}: expected a LightningModule, not a function")
        # The module may define its own loaders.
        self.data_class = pydoc.locate(preliminary.data.class_path) if preliminary.data else None
        derived = self._class_options(preliminary)
        self.config = parser.parse_args([*defaults, *derived, *options])
        has_own = self.model_class.configure_optimizers is not LightningModule.configure_optimizers
        self.auto_configure_optimizers = not has_own
        if has_own and local_rank() == 0:
            print(f"{self.model_class.__name__} has an optimizer; ignoring --optimizer and --lr_scheduler", flush=True)

    def _class_options(self, preliminary: Namespace) -> list[str]:
        """Returns options for `data_dir` and `num_classes`, if the classes of data and model have them."""
        derived = []
        data_dir = channel_dir("training")
        if data_dir and self.data_class and "data_dir" in preliminary.data.get("init_args", {}):
            derived += [f"--data={preliminary.data.class_path}", f"--data.data_dir={data_dir}"]
        num_classes = getattr(self.data_class, "num_classes", None)
        if isinstance(num_classes, int) and "num_classes" in preliminary.model.get("init_args", {}):
            derived += [f"--model={preliminary.model.class_path}", f"--model.num_classes={num_classes}"]
        return derived

    def configure_optimizers(self, module: LightningModule, optimizer: Optimizer, lr_scheduler: Any = None) -> Any:
        if lr_scheduler is None:
            return optimizer
        monitor = getattr(lr_scheduler, "monitor", None)
        scheduling = {"scheduler": lr_scheduler, "interval": self.config.lr_scheduler_interval, "monitor": monitor}
        return {"optimizer": optimizer, "lr_scheduler": scheduling}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init.trainer
        timeout = self.config_init.process_group_timeout
        check_devices(config.accelerator, config.devices)
        has_bar = any(isinstance(callback, ProgressBar) for callback in as_list(config.callbacks))
        if config.enable_progress_bar is None:
            config.enable_progress_bar = has_bar or sys.stdout.isatty()
        if config.logger is None:
            config.logger = self.config_init.logger
        if not config.logger:
            self.save_config_callback = None  # it would write config.yaml to the current folder
        register_strategies(timeout)
        self.best = self.config_init.checkpoint
        files = CheckpointFiles(self.best.folder)
        config.plugins = [files, *as_list(config.plugins)]
        if in_sagemaker():
            set_up_hosts()
        callbacks = [self.best, Report(config.enable_progress_bar)]
        if config.logger:
            callbacks.append(LearningRateMonitor())
        self.resume = None
        if not config.fast_dev_run:
            intervals = self.config.resume.every_n_minutes * 60, self.config.resume.every_n_steps
            self.resume = Resume(self.best, files, self._run_defining_options(), StopSignal(timeout), *intervals)
            callbacks.append(self.resume)
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)

    def _run_defining_options(self) -> dict[str, Any]:
        values = {key: value for key, value in self.config.items() if key.split(".")[0] in RUN_OPTIONS}
        for name in getattr(self.data_class, "resume_safe_options", ()):
            values.pop(f"data.init_args.{name}", None)
        return {re.sub(r"\W(init_args\W)?", " ", key): value for key, value in values.items()}

    def _check_before_training(self) -> None:
        """Checks folders and data before training, and finds the checkpoint to resume from."""
        if self.trainer.strategy.restore_checkpoint_after_setup:  # its weights are sharded
            raise ValueError(f"--trainer.strategy: {type(self.trainer.strategy).__name__} is not supported; use ddp")
        for folder in filter(None, [self.config.checkpoint.dirpath, self.config.model_dir]):
            check_writable(folder)
        # Lightning has no global rank yet.
        if self.resume and self.trainer.node_rank == self.trainer.local_rank == 0:
            self.resume.find(self.trainer, self.model, self.config.ckpt_path)
        if self.trainer.local_rank == 0 and hasattr(self.datamodule, "check_before_training"):
            self.datamodule.check_before_training()

    @property
    def has_test(self) -> bool:
        source = self.datamodule or self.model
        return is_overridden("test_step", self.model) and is_overridden("test_dataloader", source)

    @property
    def model_path(self) -> Path:
        return Path(self.config.model_dir or self.best.folder, "model.pt").expanduser()

    def output_paths(self) -> dict[str, Any]:
        """Returns where the files of the run are."""
        if self.trainer.fast_dev_run:
            return {}
        logs = {type(logger).__name__: logger.log_dir or logger.save_dir for logger in self.trainer.loggers}
        return {"model": self.model_path, "checkpoints": self.best.folder} | logs

    def finish(self) -> None:
        """Marks the run as finished, and ends the process group."""
        self.trainer.strategy.barrier()  # local mode stops all hosts when the first one exits
        if self.resume:
            self.resume.finish(self.trainer)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def as_list(value: Any) -> list[Any]:
    """Returns the values of an option that can be a list, a single value or None."""
    return value if isinstance(value, list) else [value] if value else []


def join_values(args: list[str]) -> list[str]:
    """Joins names and values, which SageMaker's toolkit separates.

    A separate value like -1e-3 would look like an option.
    """
    is_split = len(args) % 2 == 0 and all(name.startswith("--") and "=" not in name for name in args[::2])
    if in_sagemaker() and is_split:
        return [f"{name}={value}" for name, value in zip(args[::2], args[1::2], strict=True)]
    return args


def sagemaker_options() -> list[str]:
    """Returns options for the hosts and folders of a SageMaker job."""
    output = output_dir()
    return [
        f"--checkpoint.dirpath={checkpoint_dir() or f'{output}/checkpoints'}",
        f"--logger.save_dir={output}/tensorboard",
        f"--model_dir={model_dir()}",
        f"--trainer.num_nodes={len(hosts())}",
    ]


def register_strategies(timeout: float) -> None:
    """Gives "ddp" a timeout in seconds, and adds "ddp_exact".

    With find_unused_parameters, DDP never rebuilds its gradient buckets. With more than two ranks, it
    therefore sums in the same order before and after a resume: resumed runs were bit-exact in 6 of 6 drills;
    with "ddp", in none.
    """
    limits = {"override": True, "timeout": timedelta(seconds=timeout)}
    StrategyRegistry.register("ddp", DDPStrategy, **limits)
    StrategyRegistry.register("ddp_exact", DDPStrategy, find_unused_parameters=True, **limits)


def check_devices(accelerator: str, devices: Any) -> None:
    """Raises ValueError if a GPU is requested but none is found."""
    has_gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if not has_gpu and (accelerator in ("gpu", "cuda") or str(devices) == "-1"):
        options = f"--trainer.accelerator={accelerator} --trainer.devices={devices}"
        reason = f"torch {torch.__version__} finds no GPU ({torch.version.cuda=})"
        reason = "-1 selects all GPUs" if accelerator == "cpu" else reason
        raise ValueError(f"{options}: {reason}; train on the CPU with --trainer.accelerator=cpu --trainer.devices=1")
