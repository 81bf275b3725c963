"""`--logger.save_dir=s3://…`: the log is in S3 during a run and after, whatever S3 does; moto plays S3."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aws import AWS, BUCKET, Endpoint
from programs import ROOT, SYNTHETIC, TINY, run_train, run_train_warm
from results import epoch_lines, scalars
from runtime.s3_logger import LAST_SECONDS, S3TensorBoardLogger, client
from toolkit import Host, free_port

URL = f"s3://{BUCKET}/tb"
TO_S3 = (*TINY, *SYNTHETIC, f"--logger.save_dir={URL}", "--logger.version=version_0")
LONGER = ("--trainer.max_epochs=100", "--logger.flush_secs=1")  # than it takes to give up a request
ENDLESS = (*TO_S3, "--trainer.max_epochs=100000", "--logger.flush_secs=1")


@pytest.fixture
def environment(aws: AWS, tmp_path: Path) -> dict[str, str]:
    """That of a person who uses AWS, with a folder for temporary files alone."""
    (tmp_path / "tmp").mkdir()
    return aws.environment | {"TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def endpoint() -> Iterator[Callable[..., Endpoint]]:
    """Makes an Endpoint."""
    endpoints: list[Endpoint] = []

    def make(**kwargs) -> Endpoint:
        endpoints.append(Endpoint(**kwargs))
        return endpoints[-1]

    yield make
    for each in endpoints:
        each.server.shutdown()


def logged(aws: AWS, folder: Path, run: str = "tutorial/version_0") -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run in S3, downloaded to `folder`."""
    (folder / run).mkdir(parents=True)
    for key in aws.keys(f"tb/{run}/"):
        aws.client("s3").download_file(BUCKET, key, str(folder / key.removeprefix("tb/")))
    return scalars(folder / run)


def warnings(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("train.py: warning: ")]


def tensorboards(folder: Path) -> list[Path]:
    """Temporary folders of the log."""
    return list(folder.glob("tensorboard-*"))


def wait_until(condition: Callable[[], object], process: subprocess.Popen, timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("signum, code", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_the_log_of_an_interrupted_run_is_complete_though_s3_may_have_little_of_it(
    aws, tmp_path, environment, signum, code
):
    options = (*TO_S3, "--trainer.log_every_n_steps=3", "--checkpoint.every_n_train_steps=5", "--logger.flush_secs=100")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    run_train_warm(*options, "--logger.name=a", cwd=tmp_path / "a", env=environment)
    options = (*options, "--logger.name=b")
    drill = ("--trainer.callbacks=tiny.Drill", "--trainer.callbacks.file=step", "--trainer.callbacks.step=23")
    drill += ("--trainer.callbacks.hook=on_train_batch_end", f"--trainer.callbacks.signum={signum.value}")
    stderr = run_train_warm(*options, *drill, cwd=tmp_path / "b", env=environment, code=code).stderr
    assert "Traceback" not in stderr
    assert "going on from" in run_train_warm(*options, cwd=tmp_path / "b", env=environment).stdout
    a, b = (logged(aws, tmp_path / "log", f"{name}/version_0") for name in ("a", "b"))
    for series in (a, b):
        series["images_per_second"] = [step for step, _ in series["images_per_second"]]
    assert a == b
    assert {key.split("/")[2] for key in aws.keys("tb/b/")} == {"version_0"}


@contextlib.contextmanager
def training(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """An endless training, with its output in the file `log`."""
    with open(tmp_path / "log", "w") as log:
        command = [sys.executable, str(ROOT / "app/train.py"), *ENDLESS]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def tensorboard(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[[str], object]]:
    """TensorBoard on S3, as a function from the path of its API to the answer, None if there is none yet."""
    port = free_port()
    command = [Path(sys.executable).with_name("tensorboard"), "--logdir", URL, "--port", port, "--reload_interval=1"]
    with open(tmp_path / "tensorboard.log", "w") as log:
        server = subprocess.Popen([*command, "--load_fast=false"], env=environment, stdout=log, stderr=log)

    def get(path: str) -> object:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{path}") as response:
            return json.load(response)

    try:
        yield get
    finally:
        server.kill()
        server.wait()


def test_the_log_in_s3_is_as_complete_as_in_a_folder_and_all_that_is_made(aws, environment, tmp_path):
    result = run_train_warm(*TO_S3, cwd=tmp_path, env=environment)
    assert warnings(result.stderr) == [] and tensorboards(tmp_path / "tmp") == []
    assert f"TensorBoard logs  {URL}/tutorial/version_0," in result.stdout
    assert result.stdout.endswith(f"tensorboard --logdir {URL}\n")
    assert [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]] == [BUCKET]
    keys = aws.keys()
    names = [key.removeprefix("tb/tutorial/version_0/").split(".")[0] for key in keys]
    assert names == ["config", "events", "events", "hparams"]
    assert not (tmp_path / "logs/tensorboard").exists()
    (tmp_path / "local").mkdir()
    run_train_warm(*TINY, *SYNTHETIC, cwd=tmp_path / "local")
    in_s3, in_folder = logged(aws, tmp_path), scalars(tmp_path / "local/logs/tensorboard/tutorial/version_0")
    assert [step for step, _ in in_s3.pop("images_per_second")] == [15, 31] and in_folder.pop("images_per_second")
    assert in_s3 == in_folder
    files = [path.read_bytes() for path in (tmp_path / "tutorial/version_0").iterdir()]
    assert not any(environment["AWS_SECRET_ACCESS_KEY"].encode() in content for content in files)


@pytest.mark.slow
def test_tensorboard_serves_the_curves_from_s3_during_and_after_training(environment, tmp_path):
    curve = "plugin/scalars/scalars?run=tutorial/version_0&tag=train_loss"
    with tensorboard(tmp_path, environment) as get:
        with training(tmp_path, environment) as process:
            wait_until(lambda: get(curve), process)
            shown = len(get(curve))
            wait_until(lambda: len(get(curve)) > shown, process)
            process.send_signal(signal.SIGINT)
            process.wait(60)
        last_step = epoch_lines((tmp_path / "log").read_text())[-1]["step"]
        deadline = time.monotonic() + 30
        while get(curve)[-1][1] < last_step - 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert tensorboards(tmp_path / "tmp") == []


def test_a_run_in_s3_is_named_after_the_time_of_its_start(aws, environment, tmp_path):
    options = (*TO_S3, "--logger.version=null", "--trainer.max_epochs=1")
    stdout = run_train_warm(*options, cwd=tmp_path, env=environment).stdout
    (run,) = {key.rpartition("/")[0] for key in aws.keys("tb/")}
    assert re.fullmatch(r"tb/tutorial/\d{4}(-\d\d){5}", run)
    assert f"TensorBoard logs  s3://{BUCKET}/{run}," in stdout


def test_a_bucket_that_does_not_exist_is_an_error_and_not_created(aws, environment, tmp_path):
    result = run_train_warm(*TO_S3, "--logger.save_dir=s3://nope/tb", cwd=tmp_path, env=environment, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith("train.py: error: --logger.save_dir=s3://nope/tb: ")
    assert line.endswith(": The specified bucket does not exist")
    assert [bucket["Name"] for bucket in aws.client("s3").list_buckets()["Buckets"]] == [BUCKET]
    assert not (tmp_path / "logs").exists() and not tensorboards(tmp_path / "tmp")


def test_no_credentials_are_an_error(environment, tmp_path):
    environment = {name: value for name, value in environment.items() if "KEY" not in name}
    environment["AWS_EC2_METADATA_DISABLED"] = "true"
    result = run_train_warm(*TO_S3, cwd=tmp_path, env=environment, code=2)
    assert result.stderr == f"train.py: error: --logger.save_dir={URL}: Unable to locate credentials\n"


@pytest.mark.parametrize("reason", ["AccessDenied", "ExpiredToken", "InvalidAccessKeyId"])
def test_what_s3_forbids_is_an_error_that_names_the_reason(environment, endpoint, tmp_path, reason):
    environment |= {"AWS_ENDPOINT_URL": endpoint(error=lambda number: f"403 {reason}").url}
    result = run_train_warm(*TO_S3, cwd=tmp_path, env=environment, code=2)
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"train.py: error: --logger.save_dir={URL}: ") and reason in line


@pytest.mark.slow
def test_a_restarted_job_of_sagemaker_goes_on_in_the_same_place(aws, environment, tmp_path):
    hyperparameters = dict(option.removeprefix("--").split("=") for option in TO_S3)
    variables = {name: value for name, value in environment.items() if name.startswith(("AWS_", "TMPDIR"))}
    variables["TRAINING_JOB_NAME"] = "tutorial-2030-01-01"
    hyperparameters["checkpoint.dirpath"] = str(tmp_path / "checkpoints")
    del hyperparameters["logger.version"]
    for start, more in ("first", {"trainer.max_epochs": "1"}), ("again", {"ckpt_path": "last"}):
        host = Host(tmp_path / start, "127.0.0.1", ["127.0.0.1"], hyperparameters | more)
        host.start(**variables, MASTER_PORT=free_port())
        try:
            assert host.wait() == 0, host.log
        finally:
            host.kill()
    keys = aws.keys()
    assert {key.rpartition("/")[0] for key in keys} == {"tb/tutorial/tutorial-2030-01-01"}
    assert [step for step, _ in logged(aws, tmp_path, "tutorial/tutorial-2030-01-01")["train_loss"]] == [15, 31]
    with tensorboard(tmp_path, environment) as get:
        deadline = time.monotonic() + 60
        while not (runs := get("runs")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert runs == ["tutorial/tutorial-2030-01-01"]


@pytest.mark.parametrize(
    ("save_dir", "version", "expected"), [(URL, None, "my-job"), (URL, "mine", "mine"), ("logs", None, 0)]
)
def test_a_job_in_sagemaker_logs_under_its_name_only_to_s3_and_by_default(
    environment, monkeypatch, save_dir, version, expected
):
    for name, value in (environment | {"TRAINING_JOB_NAME": "my-job"}).items():
        monkeypatch.setenv(name, value)
    client.cache_clear()
    logger = S3TensorBoardLogger(save_dir, name="tutorial", version=version)
    logger.check()
    assert logger.version == expected


def test_s3_that_fails_half_of_the_requests_gets_the_complete_log(aws, environment, endpoint, tmp_path):
    failing = endpoint(error=lambda number: "503 SlowDown" if number % 2 else None)
    result = run_train_warm(*TO_S3, cwd=tmp_path, env=environment | {"AWS_ENDPOINT_URL": failing.url})
    assert len(failing.requests) > 8
    assert len(warnings(result.stderr)) <= 1
    found = logged(aws, tmp_path)
    assert [step for step, _ in found["train_loss"]] == [15, 31] and found["test_acc"]


@pytest.mark.slow
def test_s3_that_comes_back_gets_the_complete_log_after_one_warning(aws, environment, endpoint, tmp_path):
    # A file is tried three times before a warning, so the next copy succeeds, even if it is the one after the end.
    failing = endpoint(error=lambda number: "503 SlowDown" if 1 < number < 6 else None)
    result = run_train_warm(*TO_S3, *LONGER, cwd=tmp_path, env=environment | {"AWS_ENDPOINT_URL": failing.url})
    (line,) = warnings(result.stderr)
    assert "training goes on" in line
    found = logged(aws, tmp_path)
    assert [step for step, _ in found["train_loss"]][-1] == 1599 and found["test_acc"]
    assert tensorboards(tmp_path / "tmp") == []


@pytest.mark.slow
def test_s3_that_fails_from_the_start_on_does_not_keep_a_training_from_ending_well(environment, endpoint, tmp_path):
    failing = endpoint(error=lambda number: "503 SlowDown" if number > 1 else None)
    environment |= {"AWS_ENDPOINT_URL": failing.url}
    start = time.monotonic()
    result = run_train_warm(*TO_S3, *LONGER, cwd=tmp_path, env=environment)
    assert time.monotonic() - start < LAST_SECONDS + 30
    (folder,) = tensorboards(tmp_path / "tmp")
    during, after = warnings(result.stderr)
    assert "training goes on" in during and "SlowDown" in during
    assert "SlowDown" in after and after.endswith(f"aws s3 sync {folder} {URL}")
    assert [step for step, _ in scalars(folder / "tutorial/version_0")["train_loss"]][-1] == 1599
    assert (tmp_path / "logs/checkpoints/model.pt").exists()


@pytest.mark.slow
def test_a_file_is_put_at_most_once_in_flush_secs(environment, endpoint, tmp_path):
    counting = endpoint()

    def times() -> list[float]:
        return [at for at, method, path in counting.requests if method == "PUT" and "/events." in path]

    with training(tmp_path, environment | {"AWS_ENDPOINT_URL": counting.url}) as process:
        wait_until(lambda: len(times()) == 4, process)
        first, second, third, fourth = times()[:4]
    assert min(second - first, third - second, fourth - third) >= 1


@pytest.mark.slow
def test_of_two_processes_one_writes(aws, environment, tmp_path):
    result = run_train(*TO_S3, "--trainer.devices=2", cwd=tmp_path, env=environment)
    keys = aws.keys()
    assert {key.rpartition("/")[0] for key in keys} == {"tb/tutorial/version_0"}
    assert len(keys) == 4 and len({key.split(".")[-2] for key in keys if "events" in key}) == 1  # process ID
    assert warnings(result.stderr) == [] and tensorboards(tmp_path / "tmp") == []


def test_a_training_that_fails_leaves_its_log(aws, environment, tmp_path):
    run_train_warm(*TO_S3, "--trainer.callbacks=tiny.Fail", cwd=tmp_path, env=environment, code=1)
    assert [step for step, _ in logged(aws, tmp_path)["val_loss"]] == [15]
    assert tensorboards(tmp_path / "tmp") == []
