"""Tests of the TensorBoard log of interrupted runs, failed runs, and runs of several processes."""

import shutil
import signal
from pathlib import Path

import pytest
from runs.interrupted import CHECKPOINTED_RUN, assert_same_final_state, interrupt, train
from runs.programs import SYNTHETIC, TINY, run_train, run_train_warm
from runs.results import scalars
from runtime.tensorboard_log import TensorBoardLog

LOG = Path("logs/tensorboard/tutorial")


@pytest.mark.slow
@pytest.mark.parametrize("keeps_log", [True, False], ids=["in its folder", "in a folder that is lost"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_log_of_an_interrupted_run_equals_that_of_an_uninterrupted_run(uninterrupted, tmp_path, signum, keeps_log):
    options = (*CHECKPOINTED_RUN, "--logger.flush_secs=100")
    stderr = interrupt(*options, cwd=tmp_path, step=23, signum=signum).stderr
    assert "Traceback" not in stderr
    if not keeps_log:
        shutil.rmtree(tmp_path / LOG)
    assert "resuming from" in train(*options, cwd=tmp_path).stdout
    assert_same_final_state(uninterrupted, tmp_path)


def test_a_resumed_log_keeps_its_folder_unless_a_version_is_passed(tmp_path):
    first = TensorBoardLog(str(tmp_path), name="tutorial")
    first.log_metrics({"loss": 1.0}, 0)
    state = first.state_dict()
    for given, expected in (None, 0), ("mine", "mine"):
        again = TensorBoardLog(str(tmp_path), name="tutorial", version=given)
        again.load_state_dict(state)
        assert again.version == expected


@pytest.mark.slow
def test_only_one_of_two_processes_writes_the_log(tmp_path):
    run_train(*TINY, *SYNTHETIC, "--trainer.devices=2", cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / LOG / "version_0").iterdir())
    kinds = [name.split(".")[0] for name in names]
    assert kinds == ["config", "events", "events", "hparams"]
    assert len({name.split(".")[-2] for name in names if "events" in name}) == 1  # process ID


def test_a_failed_run_leaves_its_log(tmp_path):
    run_train_warm(*TINY, *SYNTHETIC, "--trainer.callbacks=tiny.Fail", cwd=tmp_path, code=1)
    assert [step for step, _ in scalars(tmp_path / LOG / "version_0")["val_loss"]] == [15]


def test_the_markers_of_sagemakers_agent_are_not_read(tmp_path):
    log = TensorBoardLog(str(tmp_path), name="tutorial")
    log.log_metrics({"loss": 1.0}, 0)
    (events,) = log.state_dict()["files"]
    (Path(log.log_dir) / f"{events}.sagemaker-uploading").symlink_to("vanished")
    assert list(log.state_dict()["files"]) == [events]
