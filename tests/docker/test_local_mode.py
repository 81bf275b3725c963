"""The tutorial's local mode with a real Docker Engine: `make test-docker`."""

import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
import torch
from runs.containers import LOCAL, TINY_HYPERPARAMS, docker, finish, launch, saved_model, start, start_launcher
from runs.programs import executable
from runs.results import as_bytes, assert_all_ranks_have_one_model, last_checkpoint, scalars
from runs.tutorial import block
from runs.waiting import read_until

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("image", "nothing_is_left")]
ENDLESS = ("trainer.max_epochs=100000", "trainer.callbacks=tiny.PrintWeights")


def run_as_person(commands: str, checkout: Path, code: int = 0) -> str:
    """Returns the output of commands of the tutorial, run by the owner of the checkout."""
    return finish(start(checkout, ["/bin/bash", "-ec", commands]), code)


def test_one_container_trains_the_current_code(checkout):
    log = launch(checkout, *LOCAL, *TINY_HYPERPARAMS, "trainer.max_epochs=1")
    assert "test accuracy" in log and "model   " in log
    assert saved_model(checkout)["2.weight"].shape == (10, 192)
    assert "edited" not in log

    with open(checkout / "app/resnet.py", "a") as file:
        file.write('print("this file was edited")\n')
    assert "this file was edited" in launch(checkout, *LOCAL, *TINY_HYPERPARAMS, "trainer.max_epochs=1")
    assert not list(checkout.rglob("app/__pycache__"))


@pytest.mark.parametrize("attempt", [1, 2])
def test_the_commands_of_the_tutorial_work_as_printed(checkout, attempt):
    # No GPU here: the launcher says what to do.
    assert "use --instance_type=local, and train on the CPU with" in run_as_person(
        block("python run_sagemaker.py\n"), checkout, code=2
    )

    small = " ".join((*TINY_HYPERPARAMS, "trainer.max_epochs=2", "trainer.callbacks=tiny.PrintWeights"))
    log = run_as_person(block("--instance_count=4").rstrip() + f" {small}", checkout)
    assert_all_ranks_have_one_model(log, world_size=4)
    assert sorted(path.name for path in (checkout / "output").iterdir()) == ["model.tar.gz", "output.tar.gz"]
    assert saved_model(checkout)["2.weight"].shape == (10, 192)

    extract, tensorboard = block("tar -xzf output/").strip().splitlines()
    run_as_person(extract, checkout)
    logdir = tensorboard.removeprefix("tensorboard --logdir ")
    assert list((checkout / logdir).glob("tutorial/version_0/events.out.tfevents.*"))

    small = " ".join(f"--{option}" for option in TINY_HYPERPARAMS)
    assert "test accuracy" in run_as_person(block("docker run").rstrip() + f" {small}", checkout)
    assert (checkout / "logs/checkpoints/model.pt").exists()


def test_a_killed_container_stops_the_run_within_15_seconds(checkout):
    earlier_model = checkout / "output/model.tar.gz"
    earlier_model.parent.mkdir()
    earlier_model.write_text("of an earlier run")
    for path in (earlier_model, earlier_model.parent):
        os.chown(path, checkout.stat().st_uid, checkout.stat().st_gid)
    process = start_launcher(checkout, *LOCAL, *TINY_HYPERPARAMS, *ENDLESS, instance_count=4)
    read_until("epoch=1 ", process)
    (container,) = [name for name in docker("ps", "--format", "{{.Names}}").split() if name.startswith("algo-3")]
    docker("kill", container)
    start_time = time.monotonic()
    log, _ = process.communicate(timeout=60)
    assert time.monotonic() - start_time < 15
    assert process.returncode == 1
    message = log.split("run_sagemaker.py: error: ")[1]
    assert message.startswith("Docker Compose or a container failed (see above). All containers:\n")
    assert re.search(rf"^{container} .* Exit(ed)? \(?137\b", message, re.MULTILINE)
    assert "Traceback (most recent call last)" not in message
    assert earlier_model.read_text() == "of an earlier run"


def test_four_killed_containers_resume_with_the_same_results_as_an_uninterrupted_run(checkout):
    hyperparams = ("trainer.max_epochs=20", "resume.every_n_steps=3", "trainer.callbacks=tiny.Drill")
    hyperparams += ("trainer.strategy=ddp_exact",)
    hyperparams += ("trainer.callbacks.file=/tmp/step", "trainer.callbacks.seconds=0.05")

    def start_four(name: str) -> subprocess.Popen:
        options = (f"--checkpoint_path=file://{checkout}/{name}", *LOCAL, *TINY_HYPERPARAMS, *hyperparams)
        return start_launcher(checkout, *options, instance_count=4)

    def results(process: subprocess.Popen, name: str) -> tuple[str, object, object]:
        log = finish(process, code=0)
        checkpoint = torch.load(last_checkpoint(checkout / name), weights_only=False)
        with tarfile.open(checkout / "output/output.tar.gz") as tar:
            tar.extractall(checkout / f"output-{name}", filter="data")
        (log_dir,) = (checkout / f"output-{name}/data/tensorboard/tutorial").iterdir()
        series = {tag: values for tag, values in scalars(log_dir).items() if tag != "images_per_second"}
        return log, as_bytes([saved_model(checkout), checkpoint["optimizer_states"]]), series

    _, *uninterrupted = results(start_four("a"), "a")
    process = start_four("b")
    read_until("epoch=6 ", process)
    docker("kill", *docker("ps", "--quiet").split())
    finish(process, code=1)
    log, *interrupted = results(start_four("b"), "b")
    assert re.search(r"resuming from /opt/ml/checkpoints/last-step=\d+.ckpt \(step (\d\d), epoch [67]\)\n", log)
    assert interrupted == uninterrupted


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_launcher_removes_its_containers(checkout, signum):
    process = start_launcher(checkout, *LOCAL, *TINY_HYPERPARAMS, *ENDLESS, instance_count=2)
    read_until("epoch=1 ", process)
    if signum == signal.SIGINT:  # a terminal sends it to all processes in the foreground
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    log, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, log
    assert f"run_sagemaker.py: error: stopped by {signum.name}; jobs in the cloud continue\n" in log


def test_docker_stop_lets_the_training_processes_save_and_exit(checkout):
    process = start_launcher(checkout, *LOCAL, *TINY_HYPERPARAMS, *ENDLESS)
    read_until("epoch=1 ", process)
    docker("stop", *docker("ps", "--quiet").split())
    log, _ = process.communicate(timeout=60)
    assert re.search(r"train.py: error: .* SIGTERM .*/last-step=\d+\.ckpt\n", log) and "ExitCode 143" in log


def test_docker_compose_5_is_found(checkout):
    # A plugin that reports version 5, and runs the Compose of this machine.
    metadata = '{"SchemaVersion": "0.1.0", "Vendor": "Docker Inc.", "Version": "5.0.1"}'
    executable(
        checkout / "plugins/cli-plugins/docker-compose",
        f"if [ $1 = docker-cli-plugin-metadata ]; then echo '{metadata}'; exit; fi\n"
        "shift\n"
        "if [ $1 = version ]; then echo Docker Compose version 5.0.1; exit; fi\n"
        'exec docker-compose "$@"',
    )
    log = launch(
        checkout, *LOCAL, *TINY_HYPERPARAMS, "trainer.max_epochs=1", env={"DOCKER_CONFIG": f"{checkout}/plugins"}
    )
    assert "test accuracy" in log


@pytest.mark.parametrize(
    "options, environment, line",
    [
        (
            ["--image_uri=not-built"],
            {},
            "--image_uri=not-built: not found; build it with IMAGE_NAME=not-built ./docker/build-image.sh",
        ),
        ([], {"DOCKER_HOST": "tcp://127.0.0.1:1"}, "Docker cannot be used: "),
        ([], {"PATH": "docker-only", "DOCKER_CONFIG": "none"}, "Docker Compose is not installed; "),
    ],
)
def test_a_missing_requirement_is_reported_in_one_line(checkout, options, environment, line):
    (checkout / "docker-only").mkdir()
    (checkout / "docker-only/docker").symlink_to(shutil.which("docker"))
    log = launch(checkout, *options, *LOCAL, *TINY_HYPERPARAMS, env=environment, code=2)
    assert log.startswith(f"run_sagemaker.py: error: {line}") and log.count("\n") == 1
