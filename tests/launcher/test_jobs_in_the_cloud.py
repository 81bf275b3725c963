"""Tests of what the launcher prints about running, completed, failed and stopped jobs in the cloud."""

import os
import re
import signal
import subprocess

import pytest
from fake_aws.aws import AWS, BUCKET, REGION
from runs.launcher import CLOUD, LAUNCHER, captured_exit, error_line, rejection, run_launcher
from runs.waiting import read_until

from run_sagemaker import launch, print_results, read_options

RESULTS = f"""
model        s3://{BUCKET}/output/my-job/output/model.tar.gz
checkpoints  s3://{BUCKET}/output/my-job/output/output.tar.gz
"""


@pytest.fixture
def running(account):
    """Adds a running job, my-job, to the account."""
    account.create_job("my-job", training_job_status="InProgress", secondary_status="Training")
    return account


@pytest.mark.slow
def test_a_completed_job_prints_all_logs_its_billable_time_and_its_results(account):
    account.next_job |= {"billable_time_in_seconds": 90}
    for host in ("algo-1", "algo-2"):
        account.log("my-job", host, [f"hello from {host}"])
    result = run_launcher(*CLOUD, "--job_name=my-job", environment=account.environment)
    assert result.stderr == ""
    assert "hello from algo-1\n" in result.stdout and "hello from algo-2\n" in result.stdout
    assert "Billable seconds: 180\n" in result.stdout
    assert result.stdout.endswith(RESULTS)


JOB = {
    "TrainingJobName": "my-job",
    "TrainingJobStatus": "Completed",
    "SecondaryStatus": "Completed",
    "ModelArtifacts": {"S3ModelArtifacts": f"s3://{BUCKET}/output/my-job/output/model.tar.gz"},
}


def test_the_results_include_the_checkpoint_path(capsys):
    print_results(JOB | {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/mine/"}})
    assert capsys.readouterr().out.endswith(f"\ncheckpoints  s3://{BUCKET}/checkpoints/mine/\n")


def error_of(capsys, **description: str) -> str:
    """Returns the error that the launcher reports for a job with this description."""
    return rejection(capsys, print_results, JOB | description)


def test_a_failed_or_stopped_job_is_reported_with_the_reason(capsys):
    line = error_of(capsys, TrainingJobStatus="Failed", FailureReason="AlgorithmError: train.py: error:\n no GPU")
    assert line == "job my-job failed: AlgorithmError: train.py: error: no GPU"
    line = error_of(capsys, TrainingJobStatus="Stopped", SecondaryStatus="MaxRuntimeExceeded")
    assert line == "job my-job stopped: MaxRuntimeExceeded"


def test_missing_capacity_is_reported_with_what_to_do(capsys):
    reason = "CapacityError: Unable to provision requested ML compute capacity."
    line = error_of(capsys, TrainingJobStatus="Failed", FailureReason=reason)
    assert line == f"job my-job failed: {reason}; no capacity for this instance type: try later, " + (
        "or another type or region, or on demand"
    )


@pytest.mark.slow
def test_a_failed_job_is_reported_in_one_line_with_exit_code_1(account):
    reason = "AlgorithmError: train.py: error:\n no GPU"
    account.next_job = {"training_job_status": "Failed", "secondary_status": "Failed", "failure_reason": reason}
    result = run_launcher(*CLOUD, "--job_name=my-job", environment=account.environment, code=1)
    assert error_line(result.stderr) == "job my-job failed: AlgorithmError: train.py: error: no GPU"


@pytest.mark.slow
def test_without_waiting_the_launcher_prints_how_to_attach_to_and_stop_the_job(account):
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Starting"}
    environment = account.environment | {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": "us-west-2"}
    result = run_launcher(*CLOUD, "--job_name=my-job", "--max_run=5400", "--wait=false", environment=environment)
    assert result.stderr == ""
    command = f"  python run_sagemaker.py --region={REGION}"
    assert result.stdout == (
        "the job uses up to 3 instance-hours, and needs "
        'a quota "ml.g4dn.12xlarge for training job usage" of at least 2\n'
        "Ending this command does not stop job my-job. To follow or stop it:\n"
        f"{command} --attach=my-job\n{command} --stop=my-job\n"
    )
    assert account.client("sagemaker").describe_training_job(TrainingJobName="my-job")


@pytest.mark.slow
def test_attaching_prints_the_log_from_its_start_and_the_results(running):
    running.log("my-job", "algo-1", ["the first line", "the last line"])
    completed = {"training_job_status": "Completed", "secondary_status": "Completed", "billable_time_in_seconds": 90}
    running.describe("my-job", **completed)
    result = run_launcher(*CLOUD, "--attach=my-job", environment=running.environment)
    assert result.stderr == ""
    assert "the first line\nthe last line\n" in result.stdout
    assert result.stdout.endswith(RESULTS)


def attach_or_stop_in_process(account: AWS, monkeypatch, *options: str) -> int:
    """Attaches to a job or stops it, in this process, and returns the exit code."""
    for name, value in account.environment.items():
        monkeypatch.setenv(name, value)
    with captured_exit() as end:
        launch(read_options(list(options)))
    return end.code


def test_a_job_can_be_stopped_and_attaching_reports_how_it_ended(running, monkeypatch, capsys):
    assert attach_or_stop_in_process(running, monkeypatch, "--stop=my-job") == 0
    assert capsys.readouterr().out == "stopping my-job; --attach=my-job shows how it ends\n"
    job = running.client("sagemaker").describe_training_job(TrainingJobName="my-job")
    assert job["TrainingJobStatus"] == "Stopping"
    running.describe("my-job", training_job_status="Stopped", secondary_status="Stopped")
    assert attach_or_stop_in_process(running, monkeypatch, "--attach=my-job") == 1
    assert capsys.readouterr().err == "run_sagemaker.py: error: job my-job stopped: Stopped\n"


def test_a_finished_job_cannot_be_stopped(running, monkeypatch, capsys):
    running.describe("my-job", training_job_status="Completed", secondary_status="Completed")
    assert attach_or_stop_in_process(running, monkeypatch, "--stop=my-job") == 2
    assert "the training job is in status Completed" in capsys.readouterr().err


def test_a_spot_job_that_never_trained_is_reported_in_one_line(running, monkeypatch, capsys):
    stopped = {"training_job_status": "Stopped", "secondary_status": "Stopped", "enable_managed_spot_training": True}
    running.describe("my-job", **stopped, billable_time_in_seconds=0, training_time_in_seconds=0)
    assert attach_or_stop_in_process(running, monkeypatch, "--attach=my-job") == 1
    assert capsys.readouterr().err == "run_sagemaker.py: error: job my-job stopped: Stopped\n"


def test_an_unknown_job_is_reported_in_one_line(account, monkeypatch, capsys):
    assert attach_or_stop_in_process(account, monkeypatch, "--attach=no-such-job") == 2
    stderr = capsys.readouterr().err
    assert "no-such-job" in stderr and stderr.count("\n") == 1


@pytest.fixture
def waiting(account):
    """Starts a launcher, which waits for the job my-job, and yields it once it has printed how to stop the job."""
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [*LAUNCHER, *CLOUD, "--job_name=my-job"]
    process = subprocess.Popen(command, env=account.environment, start_new_session=True, **output)
    read_until("--stop=my-job\n", process)
    yield process
    process.kill()


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(account, waiting):
    os.killpg(waiting.pid, signal.SIGINT)
    _, stderr = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert stderr == "run_sagemaker.py: error: stopped by SIGINT; jobs in the cloud continue\n"
    job = account.client("sagemaker").describe_training_job(TrainingJobName="my-job")
    assert job["TrainingJobStatus"] == "InProgress"


@pytest.mark.slow
def test_a_token_that_expires_while_waiting_is_reported_in_one_line(account, waiting):
    account.client("iam").delete_access_key(UserName="owner", AccessKeyId=account.environment["AWS_ACCESS_KEY_ID"])
    with account.enforce_policies():
        _, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert re.match("run_sagemaker.py: error: .* security token .* is invalid", stderr) and stderr.count("\n") == 1
