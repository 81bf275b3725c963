"""The command line of a training program: its options, where their defaults come from, one clear line for a mistake."""

import logging
import os
import pydoc
import re
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveFloat
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.strategies import DDPStrategy, StrategyRegistry
from sagemaker_env import SageMakerEnvironment, in_sagemaker, join_values, sagemaker_defaults
from torch.optim import Optimizer

from runtime.best_network import BestNetwork
from runtime.checkpoint_files import CheckpointFiles
from runtime.errors import exit_with, warn
from runtime.files import check_writable
from runtime.parser import Parser
from runtime.report import Report
from runtime.resume import Resume
from runtime.tensorboard_log import TensorBoardLog

# Lightning's remarks on what it found and did, advertisements among them, would hide our one line.
for name in ("lightning_fabric.utilities", "pytorch_lightning.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.WARNING)
# None of these warnings helps the reader: they are about Lightning's own code, and about what is as it should be.
warnings.filterwarnings("ignore", module=r"pytorch_lightning\.(utilities\._pytree|.*logger_connector\.result)")
for text in ("Checkpoint directory .* is not empty", "Total length of `list`", "Precision .* by the model summary"):
    warnings.filterwarnings("ignore", message=text)

# torch's deterministic mode also fills new tensors with NaN, to help debugging: 4 % of ResNet-18's step on the CPU.
torch.utils.deterministic.fill_uninitialized_memory = False

CKPT_PATH = """Checkpoint to go on from: its path, `last` also after the end of a run or with other options, `none` to
start anew. By default the newest of an interrupted run with the same options, if there is one."""
# Type, default and explanation of the options that are of no class.
OPTIONS = {
    "ckpt_path": (str | None, None, CKPT_PATH),
    "model_dir": (str | None, None, "Folder for model.pt, if not beside the checkpoints."),
    "lr_scheduler_interval": (Literal["epoch", "step"], "epoch", "How often the learning-rate scheduler steps."),
    "process_group_timeout": (PositiveFloat, 300.0, "Seconds that processes wait for each other before they give up."),
    "trainer.weights_save_path": (str | None, None, "Old name of --checkpoint.dirpath."),
}
# Two runs with other values here are not the same run.
OPTIONS_OF_A_RUN = ("seed_everything", "data", "model", "optimizer", "lr_scheduler", "lr_scheduler_interval")


class CLI(LightningCLI):
    """Defaults < YAML < --config < SageMaker's folders < options, in their order. A mistake ends in one line."""

    def __init__(self, defaults: Path, purpose: str):
        self.defaults = f"--config={defaults}"
        how = {"usage": f"python app/train.py [options]\n\n{purpose}", "description": None, "allow_abbrev": False}
        try:
            super().__init__(
                datamodule_class=LightningDataModule,
                subclass_mode_data=True,
                run=False,
                save_config_kwargs={"overwrite": True},
                parser_class=Parser,
                parser_kwargs=how,
            )
            self._check()
        except (ValueError, OSError) as error:
            exit_with(error, 2)

    def add_arguments_to_parser(self, parser: Parser) -> None:
        parser.add_class_arguments(TensorBoardLog, "logger")
        fixed = {"save_last", "save_weights_only", "save_on_exception", "train_time_interval"}
        parser.add_class_arguments(BestNetwork, "checkpoint", skip=fixed)
        for name, (kind, default, explanation) in OPTIONS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=explanation)
        parser.read_whole_numbers_as_such()

    def parse_arguments(self, parser: Parser, args: Any) -> None:
        args = join_values(sys.argv[1:])
        # In SageMaker, YAML files yield to its folders.
        files = [self.defaults, *(arg for arg in args if in_sagemaker() and arg.startswith("--config="))]
        options = [arg for arg in args if arg not in files]
        first = parser.parse_args([*files, *(arg for arg in options if not arg.startswith("--print_config"))])
        model_class = pydoc.locate(first.model.class_path)
        self.data_class = pydoc.locate(first.data.class_path) if first.data else None  # the module may have the data
        defaults = sagemaker_defaults()
        if isinstance(getattr(self.data_class, "num_classes", None), int):  # and no property
            defaults["model.num_classes"] = self.data_class.num_classes
        for name, value in defaults.items():
            group, _, argument = name.partition(".")
            if group not in ("data", "model"):
                files.append(f"--{name}={value}")
            elif argument in (first[group] or {}).get("init_args", {}):
                files += [f"--{group}={first[group].class_path}", f"--{name}={value}"]
            elif group == "data" and self.data_class and not any(value in option for option in options):
                line = f"the data module {self.data_class.__name__} takes no data_dir: give it SageMaker's folder"
                warn(f"{line} yourself, such as --hyperparams data.root={value}")
        self.config = parser.parse_args([*files, *options])
        if path := self.config.trainer.pop("weights_save_path"):
            self.config.checkpoint.dirpath = path
        self.auto_configure_optimizers = model_class.configure_optimizers is LightningModule.configure_optimizers
        if not self.auto_configure_optimizers and int(os.environ.get("LOCAL_RANK", 0)) == 0:
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
        config.precision = precision_here(config.precision, config.accelerator)
        if config.enable_progress_bar is None:
            config.enable_progress_bar = sys.stdout.isatty()
        register_strategies(timeout)
        self.best = self.config_init.checkpoint
        files = CheckpointFiles(self.best.folder)
        config.plugins = [files, *(config.plugins or [])]
        if SageMakerEnvironment.detect():
            environment = SageMakerEnvironment(timeout)
            environment.validate_settings(num_devices=1, num_nodes=config.num_nodes)
            config.plugins.append(environment)
        if config.logger is None:
            config.logger = self.config_init.logger
        self.resume = None if config.fast_dev_run else Resume(self.best, files, timeout, self._options_of_this_run())
        callbacks = [self.best, Report(not config.enable_progress_bar), self.resume]
        self.trainer_defaults["callbacks"] = [callback for callback in callbacks if callback]
        return super().instantiate_trainer(**kwargs)

    def _options_of_this_run(self) -> dict[str, Any]:
        may_change = [f"data.init_args.{name}" for name in getattr(self.data_class, "may_change", ())]
        values = {key: value for key, value in self.config.items() if key.split(".")[0] in OPTIONS_OF_A_RUN}
        return {re.sub(r"\W(init_args\W)?", " ", key): values[key] for key in values if key not in may_change}

    def _check(self) -> None:
        """Checks what can be wrong outside of the program, before anything is written; finds where to go on."""
        config, trainer = self.config, self.trainer
        for directory in (config.checkpoint.dirpath, config.model_dir):
            if directory:
                check_writable(directory)
        if self.resume and trainer.node_rank == trainer.local_rank == 0:  # Lightning knows no global rank yet
            self.resume.find(trainer, self.model, config.ckpt_path)
        if trainer.local_rank == 0 and hasattr(self.datamodule, "check"):
            self.datamodule.check()

    def places(self) -> dict[str, str]:
        """Where the run's files are, and how to look at its curves."""
        folders = [f"{logger.log_dir}, which this command shows:" for logger in self.trainer.loggers]
        logs = "\n".join([*folders, f"tensorboard --logdir {self.config.logger.save_dir}"])
        return {"checkpoints": self.best.folder} | ({"TensorBoard logs": logs} if folders else {})

    def end(self) -> None:
        """Ends a run of which nothing is left to do; its last checkpoint says so."""
        self.trainer.strategy.barrier()  # local mode ends all hosts with the first
        if self.resume:
            self.resume.end(self.trainer)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# With unused parameters to find, DDP never sorts the gradients into new buckets, and so adds up those of more than two
# ranks in the same order after a resume as before: exact in 6 of 6 drills, where "ddp" was in none.
def register_strategies(timeout: float) -> None:
    """Makes the processes of "ddp" wait for each other for `timeout` seconds, and adds "ddp_exact"."""
    limits = {"override": True, "timeout": timedelta(seconds=timeout)}
    StrategyRegistry.register("ddp", DDPStrategy, **limits)
    StrategyRegistry.register("ddp_exact", DDPStrategy, find_unused_parameters=True, **limits)


def precision_here(precision: Any, accelerator: str) -> Any:
    """What is as fast on this hardware, if it has no bfloat16 for bf16-mixed."""
    if precision != "bf16-mixed":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        device, has_bf16, other = "GPU", torch.cuda.is_bf16_supported(including_emulation=False), "16-mixed"
    else:
        cpuinfo = Path("/proc/cpuinfo")
        device, has_bf16, other = "CPU", cpuinfo.exists() and "bf16" in cpuinfo.read_text(), "32-true"
    if not has_bf16 and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"this {device} has no bfloat16: --trainer.precision={other} in place of bf16-mixed", flush=True)
    return precision if has_bf16 else other


def check_devices(accelerator: str, devices: Any) -> None:
    """Raises ValueError for a GPU that is not there, and for more processes on the CPU than it has cores."""
    has_gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if not has_gpu and (accelerator in ("gpu", "cuda") or str(devices) == "-1"):
        line = f"needs a GPU, and torch {torch.__version__}, made for CUDA {torch.version.cuda}, finds none"
        advice = "train on the CPU with --trainer.accelerator=cpu --trainer.devices=1"
        raise ValueError(f"--trainer.accelerator={accelerator} --trainer.devices={devices}: {line}; {advice}")
    # Each is a process, and 300 of them have taken all memory of a machine.
    if not has_gpu and str(devices) not in ["auto", *map(str, range(1, os.cpu_count() + 1))]:
        raise ValueError(f"--trainer.devices={devices}: on the CPU it is a number of processes, 1 to {os.cpu_count()}")
