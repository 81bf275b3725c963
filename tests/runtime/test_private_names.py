"""Tests of private names of other libraries: each fails when a library changes what runtime/ depends on."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric.utilities.distributed import DistributedSamplerWrapper
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from runs.results import scalars
from runtime import private_lightning
from runtime.index_loader import IndexLoader
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader


class Module(LightningModule):
    """Records its steps and validations in `events`."""

    def __init__(self):
        super().__init__()
        self.layer, self.events = nn.Linear(1, 1), []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.events.append(f"step {batch_idx}")
        loss = self.layer(batch.float().view(-1, 1)).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.events.append("validation")
        self.log("val_loss", torch.tensor(1.0))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class TwoOptimizers(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch.float().view(-1, 1)).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), lr=0.01) for _ in range(2)]


class WriteDown(DummyLogger):
    def __init__(self, events: list[str]):
        super().__init__()
        self.events = events

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss" in metrics:
            self.events.append(f"log {step}")


class BetweenSteps(Callback):
    """Calls a function between steps and keeps its results."""

    def __init__(self, function: Callable[[Trainer], Any]):
        self.function, self.results = function, []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        private_lightning.call_between_steps(trainer, lambda: self.results.append(self.function(trainer)))


class ResumeFromMemory(Callback):
    """Resumes from a checkpoint in memory, as Resume does."""

    def __init__(self, checkpoint: dict[str, Any], metrics: dict[str, Any] | None = None):
        self.checkpoint, self.metrics, self.first_step = checkpoint, metrics or {}, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.states = self.checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        private_lightning.preload_checkpoint(trainer, self.checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = trainer.global_step
        private_lightning.restore_loop_state(trainer, True, self.states, self.metrics)


def fit(*callbacks: Callback, module: Module | None = None, loader: Any = None, **options: Any) -> Trainer:
    """Trains for two epochs of four batches by default."""
    module, loader = module or Module(), IndexLoader(8, 2, seed=0) if loader is None else loader
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"), False)
    options = {"max_epochs": 2, "accelerator": "cpu", "num_sanity_val_steps": 0, "log_every_n_steps": 1} | options
    trainer = Trainer(**(quiet | options), callbacks=list(callbacks))
    trainer.fit(module, loader, IndexLoader(2, 2))
    return trainer


def checkpoint_at(tmp_path: Path, at: tuple[int, int]) -> dict[str, Any]:
    """Returns the checkpoint of a run at (epoch, number of finished batches)."""

    def save(trainer: Trainer) -> None:
        if (trainer.current_epoch, private_lightning.num_batches_done(trainer)) == at:
            trainer.save_checkpoint(tmp_path / "checkpoint")

    fit(BetweenSteps(save))
    return torch.load(tmp_path / "checkpoint", weights_only=False)


def test_call_between_steps_runs_after_logging_and_validation_of_the_last_step():
    module = Module()
    between = BetweenSteps(lambda trainer: module.events.append("between"))
    fit(between, module=module, logger=WriteDown(module.events), max_epochs=1, val_check_interval=2)
    steps = [["between", f"step {index}", f"log {index}"] for index in range(4)]
    assert module.events == [*steps[0], *steps[1], "validation", *steps[2], *steps[3], "validation"]


def test_num_batches_done_counts_the_finished_batches_of_an_epoch():
    between = BetweenSteps(private_lightning.num_batches_done)
    fit(between)
    assert between.results == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("module", [Module, TwoOptimizers])
def test_num_steps_done_matches_the_loggers_for_any_number_of_optimizers(module):
    between = BetweenSteps(private_lightning.num_steps_done)
    fit(between, module=module())
    assert between.results == list(range(8))


def test_no_point_is_resumable_during_accumulation_or_after_a_validation():
    between = BetweenSteps(private_lightning.is_resumable_point)
    fit(between, max_epochs=1, accumulate_grad_batches=2)
    assert between.results[1:] == [False, True, False]
    between = BetweenSteps(private_lightning.is_resumable_point)
    fit(between, max_epochs=1, val_check_interval=2)
    assert between.results[1:] == [True, False, True]


def test_training_loaders_are_found_and_their_states_if_all_are_stateful():
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(range(8))

    with_state, without = IndexLoader(8, 2, seed=0), DataLoader(range(8), batch_size=2)
    for loader, has_state in [
        (with_state, True),
        (StatefulDataLoader(range(8), batch_size=2), True),
        (without, False),
        ([with_state, without], False),
        (StatefulDataLoader(Numbers(), batch_size=2), False),  # of unknown length
    ]:
        module = Module()
        module.training_step = lambda batch, batch_idx, module=module: module.layer(torch.ones(1, 1)).sum()
        loaders = BetweenSteps(private_lightning.loaders)
        states = BetweenSteps(lambda trainer: private_lightning.rank_state(trainer)["loaders"])
        fit(loaders, states, module=module, loader=loader, max_epochs=1)
        expected = loader if isinstance(loader, list) else [loader]
        assert [type(found) for found in loaders.results[0]] == [type(each) for each in expected]
        assert (states.results[0] is not None) == has_state


@pytest.mark.parametrize("num_done", [0, 2])
def test_training_resumes_from_a_checkpoint_in_memory_anywhere_in_an_epoch(tmp_path, num_done):
    resume = ResumeFromMemory(checkpoint_at(tmp_path, at=(1, num_done)))
    trainer = fit(resume, module=(module := Module()))
    assert resume.first_step == 4 + num_done and trainer.global_step == 8
    assert module.events == [*(f"step {index}" for index in range(num_done, 4)), "validation"]


@pytest.mark.parametrize("loader", [IndexLoader, StatefulDataLoader])
def test_a_loader_resumes_with_the_next_batch_in_the_order_of_the_epoch(tmp_path, loader):
    def new_loader() -> Any:
        if loader is IndexLoader:
            return IndexLoader(8, 2, seed=0)
        return StatefulDataLoader(range(8), batch_size=2, sampler=torch.utils.data.DistributedSampler(range(8), 1, 0))

    class Seen(Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer: Trainer, module: Module, batch: torch.Tensor, batch_idx: int) -> None:
            self.batches.append(batch.tolist())

    def save(trainer: Trainer) -> None:
        if private_lightning.num_steps_done(trainer) == 6:
            trainer.save_checkpoint(tmp_path / "checkpoint")

    fit(BetweenSteps(save), uninterrupted := Seen(), loader=new_loader())
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=False)
    fit(ResumeFromMemory(checkpoint), resumed := Seen(), loader=new_loader())
    assert len(uninterrupted.batches) == 8 and resumed.batches == uninterrupted.batches[6:]


@pytest.mark.parametrize("sampler", [RandomSampler(range(8)), WeightedRandomSampler([1.0] * 8, 8)])
@pytest.mark.parametrize("in_several_ranks", [False, True])
def test_a_loader_with_a_non_reproducible_sampler_is_not_stateful(sampler, in_several_ranks):
    if in_several_ranks:  # Lightning wraps samplers that it does not know, such as torchdata's
        sampler = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    is_stateful = BetweenSteps(private_lightning.loaders_are_stateful)
    options = {"max_epochs": 1, "use_distributed_sampler": False}
    fit(is_stateful, loader=StatefulDataLoader(range(8), batch_size=2, sampler=sampler), **options)
    assert not any(is_stateful.results)


def test_a_plateau_scheduler_steps_at_the_end_of_a_resumed_epoch(tmp_path):
    trainer = fit(ResumeFromMemory(checkpoint_at(tmp_path, at=(0, 2))))
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_metrics_from_before_the_interruption_are_restored(tmp_path):
    between = BetweenSteps(lambda trainer: dict(trainer.callback_metrics))
    fit(ResumeFromMemory(checkpoint_at(tmp_path, at=(0, 2)), {"earlier": torch.tensor(3.0)}), between)
    assert between.results and all(metrics["earlier"] == 3 for metrics in between.results)


def test_a_resumed_log_keeps_its_folder_and_hides_later_steps(tmp_path):
    logger = TensorBoardLogger(tmp_path, "name")
    for step in range(5):
        logger.log_metrics({"loss": step}, step)
    logger.finalize("success")
    logger = TensorBoardLogger(tmp_path, "name")
    private_lightning.continue_version(logger, 0, 3)
    assert logger.log_dir == str(tmp_path / "name/version_0")
    logger.log_metrics({"loss": 10}, 3)
    logger.finalize("success")
    assert scalars(tmp_path / "name/version_0")["loss"] == [(0, 0), (1, 1), (2, 2), (3, 10)]


def test_random_states_of_torch_numpy_and_python_are_saved_and_restored():
    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.rand(), random.random()]

    states = private_lightning.rank_state(fit(max_epochs=1))["random_states"]
    before = draw()
    private_lightning.set_random_states(states, torch.device("cpu"))
    assert draw() == before


@pytest.mark.parametrize("num_visible", [4, 1])
def test_the_random_state_of_a_gpu_is_that_of_its_own_rank(monkeypatch, num_visible):
    # A rank may have the fourth GPU of a host at first, and the only one of another host when it resumes.
    generator, device = torch.Generator(), torch.device("cuda", num_visible - 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", generator.set_state)
    states = private_lightning.random_states(device)
    before = torch.rand(3, generator=generator)
    private_lightning.set_random_states(states, torch.device("cuda", 0))
    assert torch.equal(torch.rand(3, generator=generator), before)
