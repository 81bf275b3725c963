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
from pathlib import Path

import pytest
import torch
from archives import cifar10_files, write_archive
from aws import ACCOUNT, AWS, BUCKET, NO_AWS, REGION, ROLE, Endpoint
from botocore.session import get_session
from botocore.validate import ParamValidator
from programs import ROOT

IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/sagemaker-tutorial:1"
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
    put_image(aws, tag="1")
    return aws


def put_image(aws: AWS, tag: str) -> None:
    ecr = aws.client("ecr")
    ecr.create_repository(repositoryName="sagemaker-tutorial")
    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": {"digest": f"sha256:{0:064}"}, "layers": []}
    ecr.put_image(repositoryName="sagemaker-tutorial", imageManifest=json.dumps(manifest), imageTag=tag)


def copy_project(folder: Path) -> Path:
    """A copy of what the tutorial's commands use, with a small archive in .cache."""
    project = folder / "project"
    for name in ("app", "docker"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run_sagemaker.py", "upload-cifar-10.sh", "requirements.txt"):
        shutil.copy(ROOT / name, project)
    (project / ".cache").mkdir()
    write_archive(project / ".cache", cifar10_files())
    return project


@pytest.mark.parametrize(
    "options, line",
    [
        ("--instance_count=0", "--instance_count=0: must be 1 or more"),
        ("--instance_count=-1", "--instance_count=-1: must be 1 or more"),
        ("--instance_count=two", 'Parser key "instance_count": Expected .* Got value: two'),
        ("--instance_type=ml.g4dn", "--instance_type=ml.g4dn: SageMaker does not know it; did you mean ml.g4dn.xlarge"),
        ("--instance_type=g4dn.xlarge", "--instance_type=g4dn.xlarge: SageMaker does not know it; .* ml.g4dn.xlarge"),
        ("--instance_type=ml.m5.large", "--instance_type=ml.m5.large: has no GPU for trainer.accelerator=gpu"),
        ("--image_uri=sagemaker-tutorial", "--image_uri=sagemaker-tutorial: is not in a registry; push it"),
        ("--image_uri=", "--image_uri=: is not in a registry; push it"),
        (f"--image_uri=a/{'b' * 300}", "--image_uri: 302 characters, where SageMaker allows 0 to 255"),
        ("--role=", "--role: is missing"),
        ("--role=sagemaker", "--role: 9 characters"),
        ("--role=arn:aws:iam::role/sagemaker-execution", "--role=arn:aws:iam::role/.*: must have the form arn:aws"),
        ("--input_path=.cache", "--input_path=.cache: must be in S3"),
        ("--input_path=S3://Bucket/x", "--input_path=S3://Bucket/x: must be in S3"),
        ("--input_path=s3://my_bucket/x", "--input_path=s3://my_bucket/x: must be in S3"),
        ("--output_path=s3:/my-bucket", "--output_path=s3:/my-bucket: must be in S3"),
        ("--output_path=output", "--output_path=output: must be in S3"),
        ("--code_location=code", "--code_location=code: must be in S3"),
        ("--job_name=my_job", "--job_name=my_job: must have the form"),
        ("--job_name=-job", "--job_name=-job: must have the form"),
        (f"--job_name={'j' * 64}", "--job_name: 64 characters, where SageMaker allows 1 to 63"),
        ("--max_run=0", "--max_run=0: must be 1 or more"),
        ("--max_run=2419201", "--max_run=2419201: must be 2419200 seconds, 28 days, or less"),
        ("--volume_size=0", "--volume_size=0: must be 1 or more"),
        ("--keep_alive_period_in_seconds=-1", "--keep_alive_period_in_seconds: -1, where SageMaker allows 0 to 21600"),
        ("--checkpoint_path=checkpoints", "--checkpoint_path=checkpoints: must be in S3"),
        ("--max_wait=90000", "--max_wait=90000: is for --spot_instances only"),
        ("--spot_instances --max_wait=3600", "--max_wait=3600: must be --max_run=86400 or more"),
        ("--spot_instances --keep_alive_period_in_seconds=60", "--keep_alive_period_in_seconds: SageMaker does not"),
        ("--max_retry=0", "--max_retry: 0, where SageMaker allows 1 to 30"),
        ("--max_retry=31", "--max_retry: 31, where SageMaker allows 1 to 30"),
        ("--subnets subnet-1", "--subnets and --security_group_ids: SageMaker needs both or none"),
        ("--subnets s --security_group_ids a_b", "--security_group_ids 0=a_b: must have the form"),
        ("--subnets s --security_group_ids a b c d e f", "--security_group_ids: 6 entries"),
        ("--environment 1A=b", "--environment 1A=1A: must have the form"),
        ("--environment A", "--environment A: must be key=value"),
        (f"--environment A={'b' * 513}", "--environment A: 513 characters, where SageMaker allows 0 to 512"),
        (f"--environment {' '.join(f'A{number}=' for number in range(101))}", "--environment: 101 entries"),
        ("--tags a?b=c", r"--tags 0 Key=a\?b: must have the form"),
        (f"--tags {' '.join(f'tag{number}=' for number in range(51))}", "--tags: 51 entries"),
        (f"--hyperparams logger.name={'x' * 2501}", "--hyperparams logger.name: 2501 characters"),
        (f"--hyperparams {'x' * 257}=1", "--hyperparams x*: 257 characters, where SageMaker allows 0 to 256"),
        ("--enable_network_isolation --hyperparams logger.save_dir=s3://b/t", "--enable_network_isolation: leaves no"),
        ("--wait=perhaps", "argument --wait/--no_wait: invalid .* value: 'perhaps'; --help"),
        ("--use_spot", "unrecognized arguments: --use_spot; --help explains all options"),
    ],
    ids=lambda text: text[:40],
)
def test_a_bad_input_ends_in_one_line_before_any_request(options, line):
    # Any request would fail, in another way, at an address where nobody listens.
    environment = NO_AWS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_DEFAULT_REGION": REGION}
    assert re.match(line, error_line(*options.split(), environment=environment))


@pytest.mark.parametrize(
    "items, line",
    [
        (["instance_count=3"], "--estimator instance_count: use --instance_count"),
        (["max_retries=3"], "--estimator max_retries: the Estimator has no such argument"),
        (["max_retry_attempts=3"], "--estimator max_retry_attempts: use --max_retry"),
    ],
)
def test_a_bad_argument_of_the_estimator_ends_in_one_line(items, line):
    assert error_line("--dry_run", "--estimator", *items, environment=NO_AWS) == line


def dry_run(*options: str) -> dict:
    """The request, with no account, and nobody listening where AWS would be."""
    environment = NO_AWS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    stdout, stderr = launch("--dry_run", *options, environment=environment)
    assert stderr == ""
    return json.loads(stdout.split("\nEach container runs:\n")[0])


@pytest.fixture(scope="module")
def full_request() -> dict:
    """That of a launch with every option."""
    options = ["--job_name=my-job", "--max_run=3600", "--volume_size=50", "--keep_alive_period_in_seconds=600"]
    options += [f"--code_location=s3://{BUCKET}/code/"]
    options += ["--environment", "A=b=c", "B=1", "--tags", "team=vision", "--subnets", "subnet-1", "subnet-2"]
    options += ["--security_group_ids", "sg-1", "--encrypt_inter_container_traffic", "--enable_network_isolation"]
    options += ["--max_retry=2", "--estimator", "output_kms_key=alias/mine"]
    return dry_run(*options, "--hyperparams", "trainer.max_epochs=1")


def test_a_dry_run_without_an_account_prints_a_request_with_every_option(full_request):
    request = full_request
    assert request["TrainingJobName"] == "my-job"
    assert request["RoleArn"] == ROLE
    assert request["AlgorithmSpecification"]["TrainingImage"] == IMAGE
    assert request["ResourceConfig"] == {
        "InstanceType": "ml.g4dn.12xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 50,
        "KeepAlivePeriodInSeconds": 600,
    }
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    channels = {channel["ChannelName"]: channel["DataSource"]["S3DataSource"] for channel in request["InputDataConfig"]}
    sources = {name: source["S3Uri"] for name, source in channels.items()}
    assert sources["training"] == f"s3://{BUCKET}/datasets/cifar-10"
    assert sources["code"].startswith(f"s3://{BUCKET}/code/my-job/source/")  # without a network SageMaker fetches it
    assert request["OutputDataConfig"] == {"S3OutputPath": f"s3://{BUCKET}/output", "KmsKeyId": "alias/mine"}
    assert request["VpcConfig"] == {"Subnets": ["subnet-1", "subnet-2"], "SecurityGroupIds": ["sg-1"]}
    assert request["Environment"] == {"A": "b=c", "B": "1"}
    assert request["Tags"] == [{"Key": "team", "Value": "vision"}]
    assert request["EnableNetworkIsolation"] and request["EnableInterContainerTrafficEncryption"]
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 2}
    assert request["HyperParameters"]["trainer.max_epochs"] == '"1"'
    model = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert not ParamValidator().validate(request, model).has_errors()


def test_a_dry_run_prints_the_request_of_a_spot_job():
    options = ["--spot_instances", "--max_run=3600", "--max_wait=7200", "--max_retry=3"]
    request = dry_run(*options, f"--checkpoint_path=s3://{BUCKET}/checkpoints/mine")
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert request["CheckpointConfig"] == {"S3Uri": f"s3://{BUCKET}/checkpoints/mine"}
    assert request["RetryStrategy"] == {"MaximumRetryAttempts": 3}
    model = get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    assert not ParamValidator().validate(request, model).has_errors()


def test_spot_instances_without_a_checkpoint_path_are_warned_of():
    environment = NO_AWS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    stdout, stderr = launch("--dry_run", "--spot_instances=true", environment=environment)
    request = json.loads(stdout.split("\nEach container runs:\n")[0])
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400, "MaxWaitTimeInSeconds": 86400}
    assert stderr == (
        "run_sagemaker.py: warning: --spot_instances: without --checkpoint_path the job starts anew after each "
        "interruption\n"
    )


def test_a_job_on_spot_instances_ends_with_what_it_saved(account):
    account.next_job |= {"billable_time_in_seconds": 90, "training_time_in_seconds": 300}
    options = ["--job_name=my-job", "--spot_instances", f"--checkpoint_path=s3://{BUCKET}/checkpoints/mine"]
    stdout, stderr = launch(*options, environment=account.environment)
    assert stderr == ""
    assert "\nsaved by spot     70% of 300 seconds of training\n" in stdout
    assert stdout.endswith(f"\ncheckpoints       s3://{BUCKET}/checkpoints/mine\n")


def test_cloudwatch_finds_every_metric_in_the_lines_that_training_prints(full_request):
    line = (
        "epoch=4 step=1565 train_loss=0.921277 train_acc=0.67 val_loss=1.2e-05 val_acc=1 images_per_second=592.958\n"
        "test_loss=0.9 test_acc=0.68"
    )
    definitions = full_request["AlgorithmSpecification"]["MetricDefinitions"]
    found = {item["Name"]: float(re.search(item["Regex"], line)[1]) for item in definitions}
    assert found == {
        "train_loss": 0.921277,
        "train_acc": 0.67,
        "val_loss": 1.2e-05,
        "val_acc": 1,
        "test_loss": 0.9,
        "test_acc": 0.68,
        "images_per_second": 592.958,
    }


@pytest.mark.parametrize(
    "change, options, line",
    [
        ("", "--input_path=s3://no-such-bucket/x", "--input_path=s3://no-such-bucket/x: there is no bucket"),
        ("", "--output_path=s3://no-such-bucket", "--output_path=s3://no-such-bucket: there is no bucket"),
        ("", "--checkpoint_path=s3://no-such-bucket", "--checkpoint_path=s3://no-such-bucket: there is no bucket"),
        ("", "--code_location=s3://no-such-bucket/x", "--code_location=s3://no-such-bucket/x: there is no bucket"),
        ("", "--output_path=s3://other-bucket/x", "--output_path=s3://other-bucket/x: bucket .* is in us-west-2"),
        ("", "--hyperparams logger.save_dir=s3://none/x", "--hyperparams logger.save_dir=s3://none/x: there is no"),
        ("", f"--input_path=s3://{BUCKET}/empty", "--input_path=s3://.*/empty: has no cifar-10-python.tar.gz"),
        ("", f"--image_uri={IMAGE}0", f"--image_uri={IMAGE}0: is not in the registry; push it"),
        ("", f"--image_uri={IMAGE.replace('tutorial', 'x')}", "--image_uri=.*: is not in the registry; push it"),
        ("", "--job_name=taken", "--job_name=taken: there is a job of that name already"),
        ("no region", "", "there is no AWS region; name one, as by: export AWS_DEFAULT_REGION="),
        ("no credentials", "", "AWS: Unable to locate credentials; make them known with `aws configure`"),
        ("no such profile", "", r"AWS: The config profile \(nobody\) could not be found"),
        ("expired", "", "AWS: .*ExpiredToken.*; log in again"),
        ("no server", "", "AWS: Could not connect to the endpoint URL"),
        ("denied", "", "AWS: .*(AccessDenied|Forbidden).*; docker/policies/laptop.json lists"),
    ],
)
def test_what_is_missing_in_the_account_is_told_in_one_line_before_the_upload(account, change, options, line):
    s3 = account.client("s3", region="us-west-2")
    s3.create_bucket(Bucket="other-bucket", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    environment = dict(account.environment)
    if "taken" in options:
        launch("--wait=false", options, environment=environment)
    num_objects, num_requests = len(account.keys()), len(account.requests)
    if change == "no region":
        del environment["AWS_DEFAULT_REGION"]
    elif change == "no credentials":
        environment = {name: value for name, value in environment.items() if "ACCESS_KEY" not in name}
        environment["AWS_EC2_METADATA_DISABLED"] = "true"
    elif change == "no such profile":
        environment["AWS_PROFILE"] = "nobody"
    elif change == "no server":
        environment |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    elif change == "expired":
        environment["AWS_ENDPOINT_URL"] = Endpoint(error=lambda number: "403 ExpiredToken").url
    elif change == "denied":
        allow_nothing = {"Effect": "Allow", "Action": "sts:GetCallerIdentity", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow_nothing]})
        environment = account.person("newcomer", policy)
    with account.enforce_policies() if change == "denied" else contextlib.nullcontext():
        before = time.monotonic()
        assert re.match(line, error_line(*options.split(), environment=environment))
        assert time.monotonic() - before < 5
    assert (len(account.keys()), len(account.requests)) == (num_objects, num_requests)


def test_a_completed_job_shows_its_log_by_host_and_ends_with_what_it_cost_and_where_the_model_is(account):
    account.next_job |= {"billable_time_in_seconds": 90}
    for host in ("algo-1", "algo-2"):
        account.log("my-job", host, [f"hello from {host}"])
    stdout, stderr = launch("--job_name=my-job", environment=account.environment)
    assert stderr == ""
    assert "algo-1  hello from algo-1\n" in stdout and "\nalgo-2  hello from algo-2\n" in stdout
    assert stdout.endswith(
        f"""
job               my-job: Completed
billable seconds  180 (90 on each of 2 instances)
model             s3://{BUCKET}/output/my-job/output/model.tar.gz
checkpoints       s3://{BUCKET}/output/my-job/output/output.tar.gz
"""
    )


@pytest.mark.parametrize(
    "status, secondary_status, reason",
    [
        ("Failed", "Failed", "AlgorithmError: train.py: error:\n no GPU"),
        ("Stopped", "MaxRuntimeExceeded", None),
    ],
)
def test_a_job_that_ends_otherwise_ends_the_launcher_with_1_and_the_reason(account, status, secondary_status, reason):
    account.next_job = {"training_job_status": status, "secondary_status": secondary_status, "failure_reason": reason}
    line = error_line("--job_name=my-job", environment=account.environment, code=1)
    reason = "AlgorithmError: train.py: error: no GPU" if reason else secondary_status
    assert line == f"job my-job ended as {status}: {reason}"


def test_without_waiting_the_launcher_says_how_to_follow_and_to_stop_the_job(account):
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Starting"}
    stdout, stderr = launch("--job_name=my-job", "--wait=false", environment=account.environment)
    assert stderr == ""
    assert "aws logs tail /aws/sagemaker/TrainingJobs --follow --log-stream-name-prefix my-job/\n" in stdout
    assert "aws sagemaker stop-training-job --training-job-name my-job\n" in stdout


@pytest.fixture
def waiting(account):
    """A launcher that waits for the job my-job."""
    account.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}
    process = start("--job_name=my-job", environment=account.environment, start_new_session=True)
    while "started my-job" not in process.stdout.readline():
        assert process.poll() is None
    yield process
    process.kill()


def test_ctrl_c_leaves_the_job_running_and_says_so(account, waiting):
    os.killpg(waiting.pid, signal.SIGINT)
    stdout, stderr = waiting.communicate(timeout=10)
    assert waiting.returncode == 130
    assert "aws sagemaker stop-training-job --training-job-name my-job\n" in stdout
    assert stderr == "run_sagemaker.py: error: stopped by SIGINT\n"
    job = account.client("sagemaker").describe_training_job(TrainingJobName="my-job")
    assert job["TrainingJobStatus"] == "InProgress"


def test_a_token_that_expires_while_waiting_leaves_the_job_running_and_says_so(account, waiting):
    account.client("iam").delete_access_key(UserName="owner", AccessKeyId=account.environment["AWS_ACCESS_KEY_ID"])
    with account.enforce_policies():
        stdout, stderr = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "aws sagemaker stop-training-job --training-job-name my-job\n" in stdout
    assert re.match("run_sagemaker.py: error: AWS: .* security token .* is invalid", stderr) and stderr.count("\n") == 1


def test_the_commands_of_the_tutorial_work_as_printed_with_no_more_permissions_than_they_need(aws, tmp_path):
    section = (ROOT / "README.md").read_text().split("### With SageMaker in the cloud")[1].split("\n### ")[0]
    variables, push, upload, train, curves = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    for placeholder, value in ("<account-id>", ACCOUNT), ("<role-name>", "sagemaker"), ("<my-bucket>", BUCKET):
        variables = variables.replace(placeholder, value)
    project = copy_project(tmp_path)
    person, role = aws.person_with("laptop"), aws.person_with("execution-role")
    aws.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}

    def start(command: str, **changed: str) -> subprocess.Popen:
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["bash", "-ec", variables + command], cwd=project, env=person | changed, **output)

    with aws.enforce_policies():
        # The push needs Docker: tests/test_registry.py. This is what it would leave in the registry.
        assert push == "./docker/push-image.sh\n"
        stdout, stderr = start("docker/image-uri.sh").communicate()
        put_image(aws, tag=stdout.strip().split(":")[1])

        checksum = hashlib.md5((project / ".cache/cifar-10-python.tar.gz").read_bytes()).hexdigest()
        stdout, stderr = start(upload, CIFAR10_MD5=checksum).communicate()
        assert aws.keys() == ["datasets/cifar-10/cifar-10-python.tar.gz"], stderr

        hyperparams = ("trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights", *TINY, *CPU)
        process = start(f"{train.rstrip()} {' '.join(hyperparams)}")
        while not aws.requests:
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        (request,) = aws.requests
        aws.execute(request, tmp_path / "job", role)
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
    weights = re.findall(r"^algo-(\d)  rank=\d world_size=2 weights=(\w+)", stdout, re.MULTILINE)
    assert sorted(host for host, _ in weights) == ["1", "2"] and len({weight for _, weight in weights}) == 1
    key = stdout.split(f"model             s3://{BUCKET}/")[1].split()[0]
    content = aws.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert torch.load(tar.extractfile("./model.pt"), weights_only=True)["2.weight"].shape == (10, 192)
    logdir = curves.strip().removeprefix("tensorboard --logdir ${S3_PATH}/")
    events = f"{logdir}/tutorial/{request['TrainingJobName']}/events.out.tfevents"
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
