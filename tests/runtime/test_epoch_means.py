"""Values that self.log averages over an epoch: exact after a resume within it, on one process or several."""

import signal

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.plugins import HalfPrecision
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric
from runs.interrupted import interrupt, train
from runs.programs import SYNTHETIC
from runs.results import last_checkpoint, scalars
from runtime.private_lightning import epoch_sums, metric_state, metrics, restore_epoch_sums, restore_metrics
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassPrecision, MulticlassRecall


class LogsEachKind(LightningModule):
    """Logs a mean, a sum, a minimum and a maximum of the batch numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        for kind in ("mean", "sum", "min", "max"):
            self.log(kind, batch.float().mean(), on_step=False, on_epoch=True, reduce_fx=kind, batch_size=len(batch))
        return self.layer(batch.float().view(-1, 1)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(module: LightningModule, batches: list[list[int]], *sums: dict, max_epochs: int = 1) -> Trainer:
    """Trains on these batches, and continues sums of an interrupted epoch."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    restore = LambdaCallback(on_train_start=lambda trainer, _: restore_epoch_sums(trainer, list(sums)))
    trainer = Trainer(max_epochs=max_epochs, accelerator="cpu", callbacks=restore, **quiet)
    trainer.fit(module, DataLoader([torch.tensor(batch) for batch in batches], batch_size=None))
    return trainer


def logged(batches: list[list[int]], *sums: dict) -> dict[str, float]:
    """Returns the epoch values of a run on these batches."""
    values = fit(LogsEachKind(), batches, *sums).callback_metrics
    return {name: float(value) for name, value in values.items()}


def sums_of(batches: list[list[int]]) -> dict:
    """Returns the sums that a checkpoint has after these batches."""
    saved = {}

    class Module(LogsEachKind):
        def on_train_epoch_end(self) -> None:
            saved.update(epoch_sums(self.trainer))

    fit(Module(), batches)
    return saved


def test_means_sums_and_extrema_continue_those_of_before():
    first, second = [[5, 7], [1]], [[4], [3, 6]]
    assert logged(second, sums_of(first)) == logged([*first, *second])


def test_the_sums_of_several_ranks_are_added_up_on_one():
    first, second, rest = [[5, 7]], [[1, 3]], [[4, 8]]
    expected = logged([*first, *second, *rest])
    assert logged(rest, sums_of(first), sums_of(second)) == expected


def test_sums_are_of_one_epoch_only():
    trainer = fit(LogsEachKind(), [[2]], sums_of([[100]]), max_epochs=2)
    assert trainer.callback_metrics["mean"] == 2


def test_torchmetrics_continue_with_their_states_also_where_they_share_them():
    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.mean = MeanMetric()
            self.scores = MetricCollection([MulticlassPrecision(3), MulticlassRecall(3)])

        def update(self, *batches: int) -> None:
            for seed in batches:
                generator = torch.Generator().manual_seed(seed)
                self.mean(torch.rand(4, generator=generator))
                self.scores(torch.rand(9, 3, generator=generator), torch.randint(3, (9,), generator=generator))

    uninterrupted, interrupted, resumed = Module(), Module(), Module()
    uninterrupted.update(0, 1, 2, 3)
    interrupted.update(0, 1)
    states = {name: metric_state(metric) for name, metric in metrics(interrupted).items()}
    restore_metrics(resumed, states)
    resumed.update(2, 3)
    assert torch.equal(resumed.mean.compute(), uninterrupted.mean.compute())
    assert resumed.scores.compute() == uninterrupted.scores.compute()


def test_the_sample_count_of_a_mean_is_a_float_so_that_ranks_do_not_truncate_it():
    (mean,) = [each for each in sums_of([[5, 7], [1]]).items() if each[0].endswith(".mean")]
    result = _ResultMetric(_Metadata("training_step", "mean"), is_tensor=True)
    assert result.cumulated_batch_size.is_floating_point() and mean[1]["batch_size"] == 3


def test_a_mean_of_many_samples_is_exact_with_half_precision_weights():
    with HalfPrecision("bf16-true").train_step_context():
        result = _ResultMetric(_Metadata("training_step", "loss", on_epoch=True), is_tensor=True)
        for _ in range(300):  # bfloat16 cannot count beyond 256 * 32
            result.update(torch.tensor(1.0), 32)
    assert result.value / result.cumulated_batch_size == 1.0


@pytest.mark.slow
def test_a_mean_is_still_of_the_whole_epoch_on_a_different_number_of_processes(tmp_path):
    def run(folder: str, *options: str, stop: bool = False) -> dict:
        (tmp_path / folder).mkdir(exist_ok=True)
        options = ("--model=tiny.Tiny", *SYNTHETIC, "--trainer.max_epochs=1", *options)
        start = interrupt if stop else train
        start(*options, cwd=tmp_path / folder, cold=True, **({"step": 9, "signum": signal.SIGTERM} if stop else {}))
        return scalars(tmp_path / folder / "logs/tensorboard/tutorial/version_0") if not stop else {}

    expected = run("one", "--data.batch_size=32")
    run("two", "--data.batch_size=16", "--trainer.devices=2", stop=True)
    found = run("two", "--data.batch_size=32")
    for name in ("train_loss", "train_acc"):
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in expected[name]], rel=1e-4)
    assert last_checkpoint(tmp_path / "two/logs/checkpoints").name == "last-step=16.ckpt"


@pytest.mark.slow
def test_fewer_validation_images_than_processes_end_in_one_line(tmp_path):
    options = ("--model=tiny.Tiny", *SYNTHETIC, "--data.val_split=1", "--trainer.devices=2")
    result = train(*options, cwd=tmp_path, cold=True, code=2)
    lines = [line for line in result.stderr.splitlines() if line.startswith("train.py: error: ")]
    assert set(lines) == {"train.py: error: 1 samples for 2 processes: need at least one each"}
