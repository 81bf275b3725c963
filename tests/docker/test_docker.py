"""The tutorial with a real Docker Engine: `make test-docker`."""

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
from fake_aws.aws import BUCKET, ROLE, Endpoint
from fake_aws.instances import make_hosts
from fake_aws.toolkit import of_container
from runs.archives import cifar10_files, write_archive
from runs.programs import ENVIRONMENT, ROOT
from runs.results import as_bytes, last_checkpoint, scalars
from runs.tutorial import block

pytestmark = pytest.mark.docker

CPU = ("--instance_type=local", "--hyperparams", "trainer.accelerator=cpu", "trainer.devices=1")
TINY = ("model=tiny.Tiny", "data.verify=false", "data.val_split=20", "data.batch_size=5")
ENDLESS = ("trainer.max_epochs=100000", "trainer.callbacks=tiny.PrintWeights")
PERSON = 12345  # ID of a user who is not root


def docker(*command: str) -> str:
    """Returns the output of a docker command, which must succeed."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if command[0] == "logs" else None}
    return subprocess.run(["docker", *command], check=True, text=True, **output).stdout


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """The image, built with the tutorial's own command."""
    subprocess.run(["bash", "-c", block("docker/build-image.sh").rstrip() + " --quiet"], cwd=ROOT, check=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, with a small archive in .cache and the tests' network, owned by a user who is not root."""
    for name in ("app", "launcher"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_sagemaker.py", tmp_path)
    for file in ("tests/projects/tiny.py", "examples/synthetic/synthetic.py"):
        shutil.copy(ROOT / file, tmp_path / "app")
    (tmp_path / ".cache").mkdir()
    write_archive(tmp_path / ".cache", cifar10_files())
    if os.getuid() == 0:
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, PERSON, PERSON)
        for folder in (tmp_path.parent, tmp_path.parent.parent):  # pytest creates them for root only
            folder.chmod(0o711)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Checks that no container, network, temporary folder or file of a different user is left."""
    networks = docker("network", "ls", "--quiet")
    yield
    assert docker("ps", "--all", "--quiet") == ""
    assert docker("network", "ls", "--quiet") == networks
    assert not list(Path("/tmp").glob("sagemaker-*"))
    for folder in (tmp_path / "app", tmp_path / "output"):
        assert {path.stat().st_uid for path in folder.rglob("*")} <= {tmp_path.stat().st_uid}


def start(project: Path, command: list[str], env: dict[str, str] | None = None) -> subprocess.Popen:
    """Starts a command in the project, as the owner of the project if the tests run as root."""
    if os.getuid() == 0:
        docker_group = os.stat("/var/run/docker.sock").st_gid
        person = [f"--reuid={PERSON}", f"--regid={PERSON}", f"--groups={docker_group}"]
        # Python itself may be in a folder that only root can read.
        capabilities = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        command = ["/usr/bin/setpriv", *person, *capabilities, *command]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = ENVIRONMENT | {"LOGNAME": "person", "PATH": path} | (env or {})
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, **output)


def finish(process: subprocess.Popen, code: int) -> str:
    """Returns the output of a process after checking its exit code."""
    log, _ = process.communicate(timeout=300)
    assert process.returncode == code, log
    return log


def run_block(block: str, project: Path, code: int = 0) -> str:
    """Runs commands of the README."""
    return finish(start(project, ["/bin/bash", "-ec", block]), code)


def start_launcher(project: Path, *options: str, instance_count: int = 1, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "run_sagemaker.py", f"--instance_count={instance_count}", *options]
    return start(project, command, **kwargs)


def launch(project: Path, *options: str, code: int = 0, **kwargs) -> str:
    """Returns the output of `python run_sagemaker.py` after checking its exit code."""
    return finish(start_launcher(project, *options, **kwargs), code)


def wait_for(text: str, process: subprocess.Popen) -> None:
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"no {text}")


def weights(log: str) -> list[str]:
    return re.findall(r"rank=\d world_size=(\d) weights=(\w+)", log)


def saved_model(project: Path) -> dict[str, torch.Tensor]:
    with tarfile.open(project / "output/model.tar.gz") as tar:
        return torch.load(tar.extractfile("model.pt"), weights_only=True)


def test_the_image_has_dependencies_only():
    assert docker("run", "--rm", "sagemaker-tutorial", "ls", "-A", "/opt/ml/code") == ""
    assert docker("run", "--rm", "sagemaker-tutorial", "ls", "-A", "/root") == ".bashrc\n.profile\n"
    assert "AWS" not in docker("image", "inspect", "sagemaker-tutorial")
    docker("run", "--rm", "sagemaker-tutorial", "python", "-m", "pip", "check")


def test_upgrading_another_package_does_not_download_torch_again(tmp_path):
    build = ("--quiet", "--target", "torch", "--file")
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    before = docker("build", *build, str(ROOT / "docker/Dockerfile"), str(ROOT))
    others = tmp_path / "docker/requirements/others.txt"
    changed = others.read_text().replace("tensorboard==2.21.0", "tensorboard==2.20.0")
    assert "tensorboard==2.20.0" in changed
    others.write_text(changed)
    assert docker("build", *build, str(tmp_path / "docker/Dockerfile"), str(tmp_path)) == before


def test_one_container_trains_the_current_code(project):
    log = launch(project, *CPU, *TINY, "trainer.max_epochs=1")
    assert "test accuracy" in log and "model   " in log
    assert saved_model(project)["2.weight"].shape == (10, 192)
    assert "edited" not in log

    with open(project / "app/resnet.py", "a") as file:
        file.write('print("this file was edited")\n')
    assert "this file was edited" in launch(project, *CPU, *TINY, "trainer.max_epochs=1")
    assert not list(project.rglob("app/__pycache__"))


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_commands_of_the_tutorial_work_as_printed(project, attempt):
    # No GPU here: the launcher says what to do.
    assert "use --instance_type=local; train on the CPU with" in run_block(
        block("python run_sagemaker.py\n"), project, code=2
    )

    small = " ".join((*TINY, "trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights"))
    log = run_block(block("--instance_count=4").rstrip() + f" {small}", project)
    assert [world_size for world_size, _ in weights(log)] == ["4"] * 4
    assert len({checksum for _, checksum in weights(log)}) == 1
    assert sorted(path.name for path in (project / "output").iterdir()) == ["model.tar.gz", "output.tar.gz"]
    assert saved_model(project)["2.weight"].shape == (10, 192)

    extract, tensorboard = block("tar -xzf output/").strip().splitlines()
    run_block(extract, project)
    logdir = tensorboard.removeprefix("tensorboard --logdir ")
    assert list((project / logdir).glob("tutorial/version_0/events.out.tfevents.*"))

    small = " ".join(f"--{option}" for option in TINY)
    assert "test accuracy" in run_block(block("docker run").rstrip() + f" {small}", project)
    assert (project / "logs/checkpoints/model.pt").exists()


def test_a_killed_container_stops_the_run_within_15_seconds(project):
    earlier_model = project / "output/model.tar.gz"
    earlier_model.parent.mkdir()
    earlier_model.write_text("of an earlier run")
    for path in (earlier_model, earlier_model.parent):
        os.chown(path, project.stat().st_uid, project.stat().st_gid)
    process = start_launcher(project, *CPU, *TINY, *ENDLESS, instance_count=4)
    wait_for("epoch=1 ", process)
    (container,) = [name for name in docker("ps", "--format", "{{.Names}}").split() if name.startswith("algo-3")]
    docker("kill", container)
    start_time = time.monotonic()
    log, _ = process.communicate(timeout=60)
    assert time.monotonic() - start_time < 15
    assert process.returncode == 1
    message = log.split("run_sagemaker.py: error: ")[1]
    assert message.startswith("a container failed; its log is above. All containers:\n")
    assert re.search(rf"^{container} .* Exit(ed)? \(?137\b", message, re.MULTILINE)
    assert "Traceback (most recent call last)" not in message
    assert earlier_model.read_text() == "of an earlier run"


def test_four_killed_containers_resume_with_the_same_results_as_an_uninterrupted_run(project):
    hyperparams = ("trainer.max_epochs=20", "resume.every_n_steps=3", "trainer.callbacks=tiny.Drill")
    hyperparams += ("trainer.strategy=ddp_exact",)
    hyperparams += ("trainer.callbacks.file=/tmp/step", "trainer.callbacks.seconds=0.05")

    def start_four(name: str) -> subprocess.Popen:
        options = (f"--checkpoint_path=file://{project}/{name}", *CPU, *TINY, *hyperparams)
        return start_launcher(project, *options, instance_count=4)

    def end(process: subprocess.Popen, name: str) -> tuple[str, object, object]:
        log = finish(process, code=0)
        checkpoint = torch.load(last_checkpoint(project / name), weights_only=False)
        with tarfile.open(project / "output/output.tar.gz") as tar:
            tar.extractall(project / f"output-{name}", filter="data")
        (log_dir,) = (project / f"output-{name}/data/tensorboard/tutorial").iterdir()
        series = {tag: values for tag, values in scalars(log_dir).items() if tag != "images_per_second"}
        return log, as_bytes([saved_model(project), checkpoint["optimizer_states"]]), series

    _, *uninterrupted = end(start_four("a"), "a")
    process = start_four("b")
    wait_for("epoch=6 ", process)
    docker("kill", *docker("ps", "--quiet").split())
    finish(process, code=1)
    log, *interrupted = end(start_four("b"), "b")
    assert re.search(r"resuming from /opt/ml/checkpoints/last-step=\d+.ckpt, step (\d\d) in epoch [67]\n", log)
    assert interrupted == uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launcher_removes_its_containers(project, signum):
    process = start_launcher(project, *CPU, *TINY, *ENDLESS, instance_count=2)
    wait_for("epoch=1 ", process)
    if signum == signal.SIGINT:  # a terminal sends it to all processes in the foreground
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, log
    assert f"run_sagemaker.py: error: stopped by {signum.name}\n" in log


def test_docker_stop_lets_the_training_processes_save_and_exit(project):
    process = start_launcher(project, *CPU, *TINY, *ENDLESS)
    wait_for("epoch=1 ", process)
    docker("stop", *docker("ps", "--quiet").split())
    log, _ = process.communicate(timeout=60)
    assert re.search(r"train.py: error: .* SIGTERM .*/last-step=\d+\.ckpt\n", log) and "ExitCode 143" in log


def test_docker_compose_5_is_found(project):
    # A plugin that reports version 5, and runs the Compose of this machine.
    plugin = project / "plugins/cli-plugins/docker-compose"
    plugin.parent.mkdir(parents=True)
    metadata = '{"SchemaVersion": "0.1.0", "Vendor": "Docker Inc.", "Version": "5.0.1"}'
    plugin.write_text(
        "#!/bin/sh\n"
        f"if [ $1 = docker-cli-plugin-metadata ]; then echo '{metadata}'; exit; fi\n"
        "shift\n"
        "if [ $1 = version ]; then echo Docker Compose version 5.0.1; exit; fi\n"
        'exec docker-compose "$@"\n'
    )
    plugin.chmod(0o755)
    log = launch(project, *CPU, *TINY, "trainer.max_epochs=1", env={"DOCKER_CONFIG": f"{project}/plugins"})
    assert "test accuracy" in log


def test_two_containers_train_one_model_from_the_request_of_a_cloud_job(aws, project, tmp_path):
    aws.client("s3").upload_file(f"{project}/.cache/cifar-10-python.tar.gz", BUCKET, "data/cifar-10-python.tar.gz")
    options = ("--instance_type=ml.g4dn.12xlarge", f"--role={ROLE}", "--image_uri=registry/image", "--wait=false")
    options += (f"--input_path=s3://{BUCKET}/data", f"--output_path=s3://{BUCKET}/output", *CPU[1:], *TINY)
    options += ("trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights", f"logger.save_dir=s3://{BUCKET}/logs")
    launch(project, *options, instance_count=2, env=aws.environment)
    (request,) = aws.requests

    names, endpoint = ("algo-1", "algo-2"), Endpoint(address="0.0.0.0")
    network, user = "sagemaker-tutorial-test", f"{project.stat().st_uid}:{project.stat().st_gid}"
    hosts = make_hosts(aws, request, tmp_path / "job", names, interface="eth0")
    for path in (tmp_path / "job").rglob("*"):
        os.chown(path, project.stat().st_uid, project.stat().st_gid)
    docker("network", "create", network)
    try:
        gateway = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", network).strip()
        variables = of_container({name: value for name, value in aws.environment.items() if name.startswith("AWS_")})
        variables |= {"AWS_ENDPOINT_URL": endpoint.url.replace("0.0.0.0", gateway), "OMP_NUM_THREADS": "1"}
        variables |= {"TRAINING_JOB_NAME": request["TrainingJobName"]}
        environment = [word for item in variables.items() for word in ("--env", "=".join(item))]
        for host in hosts:
            options = ["--detach", "--user", user, "--network", network, "--hostname", host.name, "--name", host.name]
            options += ["--volume", f"{host.base_dir}:/opt/ml", "--shm-size", "2g", *environment]
            docker("run", *options, "sagemaker-tutorial", "train")
        codes = docker("wait", *names).split()
        logs = docker("logs", names[0]) + docker("logs", names[1])
    finally:
        subprocess.run(["docker", "rm", "--force", *names], check=True, capture_output=True)
        docker("network", "rm", network)
    assert codes == ["0", "0"], logs
    assert [world_size for world_size, _ in weights(logs)] == ["2", "2"]
    assert len({checksum for _, checksum in weights(logs)}) == 1
    assert torch.load(hosts[0].model_dir / "model.pt", weights_only=True)["2.weight"].shape == (10, 192)
    assert list(hosts[0].output_dir.glob("tensorboard/tutorial/version_0/events.out.tfevents.*"))


@pytest.mark.parametrize(
    "options, environment, line",
    [
        (
            ["--image_uri=not-built"],
            {},
            "--image_uri=not-built: not found on this machine; build it with ./docker/build-image.sh",
        ),
        ([], {"DOCKER_HOST": "tcp://127.0.0.1:1"}, "Docker cannot be used: "),
        ([], {"PATH": "docker-only", "DOCKER_CONFIG": "none"}, "Docker Compose is not installed; "),
    ],
)
def test_a_missing_requirement_is_reported_in_one_line(project, options, environment, line):
    (project / "docker-only").mkdir()
    (project / "docker-only/docker").symlink_to(shutil.which("docker"))
    log = launch(project, *options, *CPU, *TINY, env=environment, code=2)
    assert log.startswith(f"run_sagemaker.py: error: {line}") and log.count("\n") == 1
