"""Jobs in the cloud, with an AWS of our own: what is checked, what is sent, what becomes of it."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_aws.aws import ACCOUNT, AWS, BUCKET, IMAGE, REGION, ROLE, Endpoint
from fake_aws.instances import execute
from runs.archives import cifar10_files, write_archive
from runs.programs import ROOT
from runs.tutorial import block

from launcher.account import create_session
from launcher.command_line import one_line_errors
from run_sagemaker import launch as launch_with
from run_sagemaker import print_results, read_options

OPTIONS = (
    f"--image_uri={IMAGE}",
    f"--role={ROLE}",
    "--instance_type=ml.g4dn.12xlarge",
    "--instance_count=2",
    f"--input_path=s3://{BUCKET}/datasets/cifar-10",
    f"--output_path=s3://{BUCKET}/output",
)
TINY = ("model=tiny.Tiny", "data.verify=false", "data.val_split=20", "data.batch_size=10")
CPU = ("trainer.accelerator=cpu", "trainer.devices=1")


def start(*options: str, environment: dict[str, str], **kwargs) -> subprocess.Popen:
    """Starts `python run_sagemaker.py` for a job in the cloud."""
    command = [sys.executable, ROOT / "run_sagemaker.py", *OPTIONS, *options]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **output, **kwargs)


def launch(*options: str, environment: dict[str, str], code: int = 0) -> tuple[str, str]:
    """What the launcher prints on stdout and stderr; checks its exit code."""
    process = start(*options, environment=environment)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == code, f"exit code {process.returncode}\n{stdout}\n{stderr}"
    return stdout, stderr


def error_line(*options: str, environment: dict[str, str], code: int = 2) -> str:
    """The only line on stderr."""
    _, stderr = launch(*options, environment=environment, code=code)
    assert stderr.count("\n") == 1, stderr
    return stderr.removeprefix("run_sagemaker.py: error: ").rstrip("\n")


@pytest.fixture
def account(aws, tmp_path):
    """An account in which the tutorial has come as far as the launch: with the data in S3 and the image in ECR."""
    archive = write_archive(tmp_path, cifar10_files())
    aws.client("s3").upload_file(str(archive), BUCKET, "datasets/cifar-10/cifar-10-python.tar.gz")
    aws.put_image(tag="1")
    return aws


@pytest.fixture
def running(account):
    """A job that nobody waits for."""
    account.create_job("my-job", training_job_status="InProgress", secondary_status="Training")
    return account


def copy_project(folder: Path) -> Path:
    """A copy of what the tutorial's commands use, with a small archive in .cache."""
    project = folder / "project"
    for name in ("app", "docker", "launcher"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_sagemaker.py", "upload-cifar-10.sh"):
        shutil.copy(ROOT / name, project)
    (project / ".cache").mkdir()
    write_archive(project / ".cache", cifar10_files())
    return project


@pytest.fixture
def check(account, monkeypatch, capsys):
    """Checks the account as the launcher does: `check("--job_name=x", ...)` is what it says on stderr, in one line."""

    def check_as(*options: str, environment: dict[str, str] | None = None, code: int = 2) -> str:
        before = time.monotonic()
        with monkeypatch.context() as patch, captured_exit_code() as end:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in (environment or account.environment).items():
                patch.setenv(name, value)
            create_session(read_options([*OPTIONS, *options])).client("sts").get_caller_identity()
        assert end.get("code", 0) == code
        assert time.monotonic() - before < 5
        stderr = capsys.readouterr().err
        assert stderr.count("\n") == bool(code)
        return stderr.removeprefix("run_sagemaker.py: error: ").rstrip()

    return check_as


@contextlib.contextmanager
def captured_exit_code() -> Iterator[dict[str, int]]:
    """Like the launcher, but it says the exit code instead of ending with it."""
    end: dict[str, int] = {}
    try:
        with one_line_errors():
            yield end
    except SystemExit as error:
        end["code"] = error.code


def test_without_a_region_the_launcher_says_how_to_name_one(account, check):
    environment = {name: value for name, value in account.environment.items() if name != "AWS_DEFAULT_REGION"}
    assert check(environment=environment).startswith("no AWS region is configured; pass --region")


@pytest.mark.parametrize(
    "options, environment, region",
    [
        ("--region=eu-north-1", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-north-1"),
        ("", {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1"),
        ("", {"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-2"),
        ("", {}, "eu-central-2"),
        ("--profile=other", {}, "sa-east-1"),
        ("--profile=other", {"AWS_REGION": "eu-west-1"}, "eu-west-1"),
    ],
)
def test_one_region_is_found_by_the_rule_of_the_scripts(tmp_path, monkeypatch, options, environment, region):
    config = "[default]\nregion = eu-central-2\n[profile other]\nregion = sa-east-1\n"
    (tmp_path / "config").write_text(config)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"AWS_CONFIG_FILE": str(tmp_path / "config")}).items():
        monkeypatch.setenv(name, value)
    assert create_session(read_options([*OPTIONS, *options.split()])).region_name == region


def test_without_credentials_the_launcher_says_so(account, check):
    environment = {name: value for name, value in account.environment.items() if "ACCESS_KEY" not in name}
    line = check(environment=environment | {"AWS_EC2_METADATA_DISABLED": "true"})
    assert line == "Unable to locate credentials"


def test_a_profile_that_does_not_exist_is_told(account, check):
    line = check(environment=account.environment | {"AWS_PROFILE": "nobody"})
    assert line == "The config profile (nobody) could not be found"


def test_an_expired_token_is_told_with_how_to_get_another(account, check):
    endpoint = Endpoint(error=lambda number: "403 ExpiredToken")
    line = check(environment=account.environment | {"AWS_ENDPOINT_URL": endpoint.url})
    assert re.match(".*ExpiredToken.*; log in again", line)


def test_a_server_that_does_not_answer_is_told(account, check):
    line = check(environment=account.environment | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"})
    assert line.startswith("Could not connect to the endpoint URL")


def may(*actions: str) -> str:
    """A policy that allows no more than these actions."""
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    return json.dumps({"Version": "2012-10-17", "Statement": statement})


@pytest.mark.slow
def test_a_missing_permission_names_the_policies_to_attach(account):
    newcomer = account.person("newcomer", may("sts:*", "s3:*"))
    with account.enforce_policies():
        line = error_line(environment=newcomer)
    assert re.match(
        ".*(AccessDenied|not authorized).*CreateTrainingJob.*; attach docker/policies/laptop.json to your user", line
    )


@pytest.mark.slow
def test_a_quota_that_other_jobs_have_used_up_is_told_with_what_to_do(account):
    account.refusal = ("ResourceLimitExceeded", "The account-level service limit is 2 Instances")
    line = error_line(environment=account.environment)
    assert re.match(".*ResourceLimitExceeded.* is 2 Instances; request a higher quota .*, or wait for other jobs", line)


def test_credentials_are_checked_before_the_upload(account):
    environment = account.environment | {"AWS_PROFILE": "nobody"}
    assert error_line(environment=environment) == "The config profile (nobody) could not be found"
    assert account.keys() == ["datasets/cifar-10/cifar-10-python.tar.gz"] and not account.requests


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, line",
    [
        ("--max_run=0", "Invalid value for parameter StoppingCondition.MaxRuntimeInSeconds, value: 0, valid min"),
        ("--output_path=s3://no-such-bucket", ".*no-such-bucket.* The specified bucket does not exist"),
    ],
)
def test_what_sagemaker_or_s3_refuses_is_told_in_its_own_words(account, option, line):
    assert re.match(line, error_line(option, environment=account.environment))
    assert not account.requests


@pytest.mark.slow
def test_a_completed_job_shows_the_log_of_all_hosts_and_ends_with_what_it_cost_and_where_the_model_is(account):
    account.next_job |= {"billable_time_in_seconds": 90}
    for host in ("algo-1", "algo-2"):
        account.log("my-job", host, [f"hello from {host}"])
    stdout, stderr = launch("--job_name=my-job", environment=account.environment)
    assert stderr == ""
    assert "hello from algo-1\n" in stdout and "hello from algo-2\n" in stdout
    assert "Billable seconds: 180\n" in stdout
    assert stdout.endswith(
        f"""
model        s3://{BUCKET}/output/my-job/output/model.tar.gz
checkpoints  s3://{BUCKET}/output/my-job/output/output.tar.gz
"""
    )


JOB = {
    "TrainingJobName": "my-job",
    "TrainingJobStatus": "Completed",
    "SecondaryStatus": "Completed",
    "ModelArtifacts": {"S3ModelArtifacts": f"s3://{BUCKET}/output/my-job/output/model.tar.gz"},
}


def test_a_job_with_a_checkpoint_path_ends_with_that(capsys):
    print_results(JOB | {"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/mine/"}})
    assert capsys.readouterr().out.endswith(f"\ncheckpoints  s3://{BUCKET}/checkpoints/mine/\n")


def end_of(capsys, **description: str) -> str:
    """The line that the launcher ends with after a job of this description."""
    with captured_exit_code() as end:
        print_results(JOB | description)
    assert end["code"] == 2
    return capsys.readouterr().err.removeprefix("run_sagemaker.py: error: ").rstrip()


def test_a_job_that_ends_otherwise_ends_with_the_reason(capsys):
    line = end_of(capsys, TrainingJobStatus="Failed", FailureReason="AlgorithmError: train.py: error:\n no GPU")
    assert line == "job my-job failed: AlgorithmError: train.py: error: no GPU"
    line = end_of(capsys, TrainingJobStatus="Stopped", SecondaryStatus="MaxRuntimeExceeded")
    assert line == "job my-job stopped: MaxRuntimeExceeded"


def test_a_job_for_which_aws_has_no_instances_ends_with_what_to_do(capsys):
    reason = "CapacityError: Unable to provision requested ML compute capacity."
    line = end_of(capsys, TrainingJobStatus="Failed", FailureReason=reason)
    assert line == f"job my-job failed: {reason}; no capacity for this instance type: try later, " + (
        "or a different type or region, or without spot"
    )


@pytest.mark.slow
def test_a_failed_job_ends_the_launcher_with_1_and_one_line(account):
    reason = "AlgorithmError: train.py: error:\n no GPU"
    account.next_job = {"training_job_status": "Failed", "secondary_status": "Failed", "failure_reason": reason}
    line = error_line("--job_name=my-job", environment=account.environment, code=1)
    assert line == "job my-job failed: AlgorithmError: train.py: error: no GPU"


@pytest.mark.slow
def test_without_waiting_the_launcher_says_how_to_follow_and_to_stop_the_job(account):
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Starting"}
    environment = account.environment | {"AWS_REGION": REGION, "AWS_DEFAULT_REGION": "us-west-2"}
    stdout, stderr = launch("--job_name=my-job", "--max_run=5400", "--wait=false", environment=environment)
    assert stderr == ""
    command = f"  python run_sagemaker.py --region={REGION}"
    assert stdout == (
        'uses at most 3 instance-hours, and 2 of your quota "ml.g4dn.12xlarge for training job usage"\n'
        "job my-job runs independently of this command. Follow it, or stop it:\n"
        f"{command} --attach=my-job\n{command} --stop=my-job\n"
    )
    assert account.client("sagemaker").describe_training_job(TrainingJobName="my-job")


@pytest.mark.slow
def test_attaching_shows_the_log_from_its_start_and_ends_as_if_it_was_started_here(running):
    running.log("my-job", "algo-1", ["the first line", "the last line"])
    completed = {"training_job_status": "Completed", "secondary_status": "Completed", "billable_time_in_seconds": 90}
    running.describe("my-job", **completed)
    stdout, stderr = launch("--attach=my-job", environment=running.environment)
    assert stderr == ""
    assert "the first line\nthe last line\n" in stdout
    assert stdout.endswith(
        f"""
model        s3://{BUCKET}/output/my-job/output/model.tar.gz
checkpoints  s3://{BUCKET}/output/my-job/output/output.tar.gz
"""
    )


def attach_or_stop_in_process(account: AWS, monkeypatch, *options: str) -> int:
    """Comes back to a job, in this process; returns the exit code."""
    for name, value in account.environment.items():
        monkeypatch.setenv(name, value)
    with captured_exit_code() as end:
        launch_with(read_options(list(options)))
    return end.get("code", 0)


def test_a_job_that_is_stopped_ends_for_who_is_attached(running, monkeypatch, capsys):
    assert attach_or_stop_in_process(running, monkeypatch, "--stop=my-job") == 0
    assert capsys.readouterr().out == "stopping my-job; --attach=my-job shows how it ends\n"
    job = running.client("sagemaker").describe_training_job(TrainingJobName="my-job")
    assert job["TrainingJobStatus"] == "Stopping"
    running.describe("my-job", training_job_status="Stopped", secondary_status="Stopped")
    assert attach_or_stop_in_process(running, monkeypatch, "--attach=my-job") == 1
    assert capsys.readouterr().err == "run_sagemaker.py: error: job my-job stopped: Stopped\n"


def test_a_job_that_has_ended_cannot_be_stopped(running, monkeypatch, capsys):
    running.describe("my-job", training_job_status="Completed", secondary_status="Completed")
    assert attach_or_stop_in_process(running, monkeypatch, "--stop=my-job") == 2
    assert "the training job is in status Completed" in capsys.readouterr().err


def test_a_job_on_spot_instances_that_never_trained_ends_in_one_line(running, monkeypatch, capsys):
    stopped = {"training_job_status": "Stopped", "secondary_status": "Stopped", "enable_managed_spot_training": True}
    running.describe("my-job", **stopped, billable_time_in_seconds=0, training_time_in_seconds=0)
    assert attach_or_stop_in_process(running, monkeypatch, "--attach=my-job") == 1
    assert capsys.readouterr().err == "run_sagemaker.py: error: job my-job stopped: Stopped\n"


def test_a_job_that_there_is_not_is_told_in_one_line(account, monkeypatch, capsys):
    assert attach_or_stop_in_process(account, monkeypatch, "--attach=no-such-job") == 2
    stderr = capsys.readouterr().err
    assert "no-such-job" in stderr and stderr.count("\n") == 1


@pytest.fixture
def waiting(account):
    """A launcher that waits for the job my-job, and has said how to stop it."""
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}
    process = start("--job_name=my-job", environment=account.environment, start_new_session=True)
    while "--stop=my-job\n" not in process.stdout.readline():
        assert process.poll() is None
    yield process
    process.kill()


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(account, waiting):
    os.killpg(waiting.pid, signal.SIGINT)
    _, stderr = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert stderr == "run_sagemaker.py: error: stopped by SIGINT\n"
    job = account.client("sagemaker").describe_training_job(TrainingJobName="my-job")
    assert job["TrainingJobStatus"] == "InProgress"


@pytest.mark.slow
def test_a_token_that_expires_while_waiting_ends_in_one_line(account, waiting):
    account.client("iam").delete_access_key(UserName="owner", AccessKeyId=account.environment["AWS_ACCESS_KEY_ID"])
    with account.enforce_policies():
        _, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert re.match("run_sagemaker.py: error: .* security token .* is invalid", stderr) and stderr.count("\n") == 1


@pytest.mark.slow
def test_the_commands_of_the_tutorial_work_as_printed_with_no_more_permissions_than_they_need(aws, tmp_path):
    variables = block("export SAGEMAKER_ROLE=")
    for placeholder, value in ("<account-id>", ACCOUNT), ("<role-name>", "sagemaker"), ("<my-bucket>", BUCKET):
        variables = variables.replace(placeholder, value)
    project = copy_project(tmp_path)
    person, role = aws.person_with("laptop"), aws.person_with("execution-role")
    aws.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}

    def start(command: str, **changed: str) -> subprocess.Popen:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", "-ec", variables + command], cwd=project, env=person | changed, **output)

    with aws.enforce_policies():
        # The push needs Docker: tests/docker/test_registry.py. This is what it would leave in the registry.
        stdout, stderr = start("docker/image-uri.sh").communicate()
        aws.put_image(tag=stdout.strip().split(":")[1])

        checksum = hashlib.md5((project / ".cache/cifar-10-python.tar.gz").read_bytes()).hexdigest()
        stdout, stderr = start(
            block("./upload-cifar-10.sh ${S3_PATH}/datasets/cifar-10\n"), CIFAR10_MD5=checksum
        ).communicate()
        assert aws.keys() == ["datasets/cifar-10/cifar-10-python.tar.gz"], stderr

        hyperparams = ("trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights", *TINY, *CPU)
        process = start(
            block("logger.flush_secs=5").rstrip() + f" {' '.join(hyperparams)} --environment PYTHONPATH=$PYTHONPATH"
        )
        while not aws.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        (request,) = aws.requests
        execute(aws, request, tmp_path / "job", role)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stdout + stderr

        # What lies outside is denied.
        for environment, command in (
            (person, "aws sagemaker list-training-jobs"),
            (person, f"aws s3 rm s3://{BUCKET}/datasets/cifar-10/cifar-10-python.tar.gz"),
            (person, "aws ecr delete-repository --repository-name sagemaker-tutorial --force"),
            (role, f"aws s3 cp README.md s3://{BUCKET}/datasets/README.md"),
            (role, "aws s3 mb s3://another-bucket"),
            (role, "aws sagemaker describe-training-job --training-job-name x"),
        ):
            result = subprocess.run(command.split(), env=environment, cwd=ROOT, capture_output=True, text=True)
            assert result.returncode and re.search("AccessDenied|Forbidden", result.stderr), command
        command = f"aws s3 cp README.md s3://{BUCKET}/checkpoints/README.md"
        subprocess.run(command.split(), env=role, cwd=ROOT, capture_output=True, check=True)

    assert request["ResourceConfig"]["InstanceType"] == "ml.g4dn.12xlarge"
    assert request["ResourceConfig"]["InstanceCount"] == 2
    assert request["AlgorithmSpecification"]["TrainingImage"].startswith(f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/")
    assert request["RoleArn"] == ROLE
    weights = re.findall(r"^rank=\d world_size=2 weights=(\w+)", stdout, re.MULTILINE)
    assert len(weights) == 2 and len(set(weights)) == 1
    key = stdout.split(f"model        s3://{BUCKET}/")[1].split()[0]
    content = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert torch.load(tar.extractfile("./model.pt"), weights_only=True)["2.weight"].shape == (10, 192)
    logdir = block("tensorboard --logdir ${S3_PATH}").strip().removeprefix("tensorboard --logdir ${S3_PATH}/")
    events = f"{logdir}/{request['TrainingJobName']}/tensorboard-output/tutorial/version_0/events.out.tfevents"
    assert [key for key in aws.keys(logdir) if key.startswith(events)]

    # No secret of the person or the role is in the request, in what the launcher prints, or in what it uploads.
    source = request["HyperParameters"]["sagemaker_submit_directory"].strip('"').removeprefix(f"s3://{BUCKET}/")
    code = gzip.decompress(aws.client("s3").get_object(Bucket=BUCKET, Key=source)["Body"].read())
    for environment in (person, role):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert environment[name] not in json.dumps(request) + stdout + stderr
            assert environment[name].encode() not in code
    with tarfile.open(fileobj=io.BytesIO(code)) as tar:
        names = {name.split("/")[0] for name in tar.getnames()}
    assert names - {"__pycache__"} == {path.name for path in (ROOT / "app").iterdir()} - {"__pycache__"}
