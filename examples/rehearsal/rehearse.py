"""Rehearses a spot job without the cloud: launches it on two hosts, kills one, and compares the weights.

    .venv/bin/python examples/rehearsal/rehearse.py [--hyperparams NAME=value ...] [--input_path FOLDER]

run_sagemaker.py launches the job on a local simulation of AWS, and this program takes the part of SageMaker: two hosts
get code, data and checkpoints from S3 and train, one is killed, and the job is restarted. Then the same job runs
uninterrupted. It is an example and not a test, because you can rehearse your own project with it. The exit code is 1 if
the weights of both runs differ. Pass both options as to run_sagemaker.py, to train your own network on your own data;
by default a small network trains on synthetic images in CIFAR-10's format.
"""

import contextlib
import hashlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

# The simulated AWS is that of the tests.
sys.path.extend(str(Path(__file__).parents[2] / name) for name in ("app", "tests/support", "examples/synthetic", "."))

from fake_aws.aws import AWS, BUCKET, IMAGE, ROLE
from fake_aws.instances import Instances
from runs.archives import striped_files, write_archive
from runs.programs import ROOT, copy_project

from launcher.command_line import key_value

START = psutil.Process().create_time()
S3 = f"s3://{BUCKET}"
OPTIONS = ("--wait=false", "--job_name=rehearsal", "--instance_type=ml.c5.xlarge", "--instance_count=2")
OPTIONS += ("--spot_instances", f"--image_uri={IMAGE}", f"--role={ROLE}", f"--input_path={S3}/datasets/rehearsal")
OPTIONS += (f"--output_path={S3}/output", f"--checkpoint_path={S3}/checkpoints/rehearsal")
HYPERPARAMS = {"trainer.accelerator": "cpu", "trainer.devices": "1", "resume.every_n_steps": "4"}
HYPERPARAMS |= {"logger.save_dir": f"{S3}/tensorboard"}
EXAMPLE = {"model": "fast.FastNet", "model.widths": "[16,64,64]", "model.resolutions": "[32,32,32]"}
EXAMPLE |= {"data.verify": "false", "data.val_split": "400", "data.batch_size": "64", "trainer.max_epochs": "3"}
NUM_IMAGES = 400  # in each of the six files
LINES = re.compile(
    r"resuming from|skipping|starting from scratch|training in|the training loader|epoch=|test_\w+="
    r"|(train\.py: error: )?lost contact with a peer"
)
SAME = "the weights of both runs are the same, bit for bit"
DIFFERENT = "the weights of the two runs differ: docs/interruptions.md lists the loaders that resume bit for bit"
WIDTH = 110
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Job(Instances):
    """A job that prints what happens."""

    def __init__(self, aws: AWS, request: dict[str, Any], folder: Path):
        super().__init__(aws, request, folder / "instances", role=aws.environment)

    def start(self) -> None:
        self.num_shown = [0, 0]
        # The hosts share the cores and must not inherit this program's environment.
        super().start(OMP_NUM_THREADS=str(os.cpu_count() // 2 or 1), PYTHONPATH="", TMPDIR=str(self.folder))

    def is_running(self) -> bool:
        """Prints the relevant new lines of the logs, and returns whether all hosts are running."""
        is_running = all(host.process.poll() is None for host in self.hosts)
        for number, host in enumerate(self.hosts):
            lines = host.log.split("\n")[:-1]
            for line in lines[self.num_shown[number] :]:
                if LINES.match(line):
                    report(line.replace(str(host.base_dir), "/opt/ml"), number)
            self.num_shown[number] = len(lines)
        time.sleep(0.05)
        return is_running

    def wait_for_checkpoint(self) -> None:
        """Waits until S3 has a checkpoint of the second epoch or a later one."""
        epoch, newest = None, 0
        while not epoch or newest <= int(epoch[1]):
            if not self.is_running():
                self.wait()
                sys.exit("the job ended before S3 had a checkpoint of its second epoch: increase trainer.max_epochs")
            epoch = re.search(r"^epoch=0 step=(\d+)", self.hosts[0].log, re.MULTILINE)
            newest = self.newest_step() if epoch else 0

    def newest_step(self) -> int:
        return max(map(int, re.findall(r"last-step=(\d+)\.ckpt", " ".join(self.checkpoints()))), default=0)

    def lose_first_host(self) -> None:
        """Kills the host that writes the checkpoints and waits until the other one exits."""
        report("kill -9 of all its processes: AWS takes the instance back", 0)
        self.lose(self.hosts[0])
        while self.hosts[1].process.poll() is None:
            self.is_running()
        self.is_running()
        report(f"exits with code {self.hosts[1].wait()}", 1)
        self.end()
        report(f"S3 has {len(self.checkpoints())} checkpoints, the newest from step {self.newest_step()}")

    def wait(self) -> None:
        """Waits until the job has finished; exits if a host has failed."""
        while self.is_running():
            pass
        for number, host in enumerate(self.hosts, 1):
            if host.wait():
                lines = "".join(host.log.splitlines(keepends=True)[-20:])
                sys.exit(f"host {number} exited with code {host.wait()}; its last lines:\n{lines}")
        self.is_running()
        self.end()

    def model(self) -> bytes:
        """Uploads the results and returns the content of model.pt in S3."""
        archive = self.put_results()
        report(f"job {self.request['TrainingJobName']} completed: {S3}/{archive}")
        content = self.aws.client("s3").get_object(Bucket=BUCKET, Key=archive)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            return tar.extractfile("./model.pt").read()


def report(text: str, host: int | None = None) -> None:
    line = f"{time.time() - START:5.1f} s  {text if host is None else f'host {host + 1}  {text}'}"
    print(line if len(line) <= WIDTH else f"{line[: WIDTH - 1].rpartition(' ')[0]} …", flush=True)


def read_options() -> Namespace:
    usage = "python examples/rehearsal/rehearse.py [options]"
    parser = ArgumentParser(usage=usage, description=__doc__.splitlines()[0])
    pairs = {"nargs": "*", "type": key_value, "default": [], "metavar": "NAME=value"}
    parser.add_argument("--hyperparams", **pairs, help="Options of app/train.py for both runs.")
    what = "Folder with data, which the job finds in /opt/ml/input/data/training."
    parser.add_argument("--input_path", type=Path, metavar="FOLDER", help=what)
    options = parser.parse_args()
    if options.input_path and not (options.input_path.is_dir() and any(options.input_path.iterdir())):
        line = f"--input_path={options.input_path}: expected a non-empty folder with the data for the job"
        parser.exit(2, f"rehearse.py: error: {line}\n")
    return options


def upload_data(aws: AWS, input_path: Path | None, folder: Path) -> None:
    if not input_path:
        input_path = folder / "data"
        input_path.mkdir()
        write_archive(input_path, striped_files(NUM_IMAGES))
    paths = [path for path in input_path.rglob("*") if path.is_file()]
    for path in paths:
        aws.client("s3").upload_file(str(path), BUCKET, f"datasets/rehearsal/{path.relative_to(input_path)}")
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    report(f"AWS is simulated on this machine; S3 has {megabytes:.1f} MB of data in {S3}/datasets/rehearsal")


def copy_with_example(project: Path) -> Path:
    """Copies this project to a folder, with the network of examples/fast, which trains in seconds, in app/."""
    copy_project(project, "app", "launcher", "run_sagemaker.py")
    shutil.copy(ROOT / "examples/fast/fast.py", project / "app")
    return project


def launch(aws: AWS, hyperparams: dict[str, str], project: Path, folder: Path) -> dict[str, Any]:
    """Launches the job with run_sagemaker.py and returns the request that SageMaker receives."""
    command = ["run_sagemaker.py", *OPTIONS, "--hyperparams", *(f"{key}={value}" for key, value in hyperparams.items())]
    indents = {"initial_indent": " " * 9, "subsequent_indent": " " * 11}
    layout = {"width": WIDTH, "break_on_hyphens": False, "break_long_words": False}
    print(textwrap.fill(shlex.join(["python", *command]), **indents, **layout), flush=True)
    environment = aws.environment | {"PYTHONPATH": "", "TMPDIR": str(folder)}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, *command], cwd=project, env=environment, **output)
    try:
        log, _ = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        sys.exit(log.rstrip())
    (request,) = aws.requests
    report(f"SageMaker receives the request for job {request['TrainingJobName']} and starts two hosts")
    return request


def run_interrupted(job: Job) -> bytes:
    try:
        job.start()
        job.wait_for_checkpoint()
        job.lose_first_host()
        report("SageMaker restarts the job on two new hosts")
        job.start()
        job.wait()
        return job.model()
    finally:
        job.end()


def run_uninterrupted(job: Job) -> bytes:
    report("SageMaker runs the same job again, uninterrupted")
    job.aws.client("sagemaker").create_training_job(**job.request)
    try:
        job.start()
        job.wait()
        return job.model()
    finally:
        job.end()


def rehearse(options: Namespace, folder: Path) -> bool:
    """Runs the job interrupted and uninterrupted, and returns whether the weights are the same."""
    aws = AWS()
    aws.reset()
    aws.put_image(tag="1")
    aws.next_job = {"training_job_status": "InProgress", "secondary_status": "Training"}
    upload_data(aws, options.input_path, folder)
    is_example = not (options.hyperparams or options.input_path)
    project = copy_with_example(folder / "project") if is_example else ROOT
    hyperparams = HYPERPARAMS | (EXAMPLE if is_example else dict(options.hyperparams))
    request = launch(aws, hyperparams, project, folder)
    path = {"CheckpointConfig": request["CheckpointConfig"] | {"S3Uri": f"{S3}/checkpoints/uninterrupted/"}}
    models = {"interrupted": run_interrupted(Job(aws, request, folder))}
    models["uninterrupted"] = run_uninterrupted(Job(aws, request | path | {"TrainingJobName": "uninterrupted"}, folder))
    for name, model in models.items():
        report(f"model.pt, {name:13}  SHA-256 {hashlib.sha256(model).hexdigest()}")
    return models["interrupted"] == models["uninterrupted"]


def stop(signum: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # so that nothing interrupts killing the hosts
    sys.exit(128 + signum)


def main() -> None:
    options = read_options()
    for signum in SIGNALS:
        signal.signal(signum, stop)
    with tempfile.TemporaryDirectory(prefix="rehearsal-", ignore_cleanup_errors=True) as folder:
        is_same = rehearse(options, Path(folder).resolve())
    report(SAME if is_same else DIFFERENT)
    sys.exit(not is_same)


if __name__ == "__main__":
    main()
