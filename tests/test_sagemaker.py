"""Training on SageMaker's hosts, which its real toolkit plays on this machine, without Docker."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from programs import ENVIRONMENT, ROOT, SYNTHETIC, TINY, children, run_train, run_train_warm
from results import epoch_lines
from toolkit import Host, free_port

ENDLESS = {"trainer.max_epochs": "100000"}


def weights(log: str) -> list[str]:
    """Rank, world size and checksum of the weights of each process, as PrintWeights writes them."""
    return sorted(re.findall(r"rank=\d world_size=\d weights=[0-9a-f]{64}", log))


def wait_for(text: str, host: Host, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while text not in host.log:
        assert time.monotonic() < deadline and host.process.poll() is None, host.log
        time.sleep(0.1)


def sagemaker_environment(base_dir: Path, **variables: str) -> dict[str, str]:
    """What the toolkit puts into the environment of train.py, here for a job of one host."""
    paths = {"SM_MODEL_DIR": "model", "SM_OUTPUT_DIR": "output", "SM_OUTPUT_DATA_DIR": "output/data"}
    paths |= {"SM_CHANNEL_TRAINING": "data"}
    hosts = {"SM_HOSTS": '["127.0.0.1"]', "SM_CURRENT_HOST": "127.0.0.1"}
    (base_dir / "output").mkdir()
    return {**ENVIRONMENT, **{name: str(base_dir / path) for name, path in paths.items()}, **hosts, **variables}


def test_the_folders_of_the_container_are_defaults_that_options_beat(tmp_path):
    environment = sagemaker_environment(tmp_path)
    config = yaml.safe_load(run_train_warm("--print_config", cwd=tmp_path, env=environment).stdout)
    assert config["model_dir"] == str(tmp_path / "model")
    assert config["data"]["init_args"]["data_dir"] == str(tmp_path / "data")
    assert config["logger"]["save_dir"] == str(tmp_path / "output/data/tensorboard")
    assert config["checkpoint"]["dirpath"] == str(tmp_path / "output/data/checkpoints")

    (tmp_path / "checkpoints").mkdir()  # as when the job asks for it
    # A file from a run on the laptop, say.
    (tmp_path / "run.yaml").write_text("{model_dir: null, logger: {save_dir: logs, name: mine}}")
    options = ["--config", "run.yaml"]
    config = yaml.safe_load(run_train_warm(*options, "--print_config", "", cwd=tmp_path, env=environment).stdout)
    assert config["model_dir"] == str(tmp_path / "model")
    assert config["logger"]["save_dir"] == str(tmp_path / "output/data/tensorboard")  # not among checkpoints
    assert config["logger"]["name"] == "mine"

    options = ["--data.data_dir", "mine", "--model_dir", "null", "--optimizer.weight_decay", "-1e-3"]
    config = yaml.safe_load(run_train_warm(*options, "--print_config", "", cwd=tmp_path, env=environment).stdout)
    assert config["checkpoint"]["dirpath"] == str(tmp_path / "checkpoints")
    assert config["data"]["init_args"]["data_dir"] == "mine"
    assert config["model_dir"] is None
    assert config["optimizer"]["init_args"]["weight_decay"] == -1e-3


@pytest.mark.slow
def test_a_host_without_a_name_is_waited_for_and_then_named_in_the_error(tmp_path):
    environment = sagemaker_environment(tmp_path, SM_HOSTS='["127.0.0.1", "algo-2.invalid"]')
    start = time.monotonic()
    result = run_train(*TINY, *SYNTHETIC, "--process_group_timeout=3", cwd=tmp_path, env=environment, code=2)
    assert time.monotonic() - start > 3
    assert result.stderr == (
        "train.py: error: host algo-2.invalid of 127.0.0.1, algo-2.invalid has not come up within 3 s\n"
    )
    assert (tmp_path / "output/failure").read_text() == result.stderr.strip()


def test_a_number_of_nodes_other_than_that_of_the_hosts_is_refused(tmp_path):
    options = (*TINY, *SYNTHETIC, "--trainer.num_nodes=3")
    result = run_train_warm(*options, cwd=tmp_path, env=sagemaker_environment(tmp_path), code=2)
    assert result.stderr.splitlines()[-1] == "train.py: error: --trainer.num_nodes=3: the SageMaker job has 1 hosts"


@pytest.mark.slow
def test_two_hosts_with_two_processes_each_train_one_model(job):
    hosts = job(2, {"trainer.devices": "2"})
    assert [host.wait() for host in hosts] == [0, 0], hosts[0].log + hosts[1].log
    ranks = weights(hosts[0].log + hosts[1].log)
    assert [rank.split(" weights=")[0] for rank in ranks] == [f"rank={rank} world_size=4" for rank in range(4)]
    assert len({rank.split(" weights=")[1] for rank in ranks}) == 1
    network = torch.load(hosts[0].model_dir / "model.pt", weights_only=True)
    assert network["2.weight"].shape == (10, 192)
    assert not list(hosts[1].model_dir.iterdir())


@pytest.mark.slow
def test_two_hosts_give_the_losses_of_one_host_with_two_processes(job):
    two_hosts = job(2)
    assert [host.wait() for host in two_hosts] == [0, 0]
    (one_host,) = job(1, {"trainer.devices": "2"})
    assert one_host.wait() == 0
    two, one = (
        [{**line, "images_per_second": 0} for line in epoch_lines(host.log)] for host in (two_hosts[0], one_host)
    )
    assert two == one and len(one) == 2
    assert weights(two_hosts[0].log) == weights(one_host.log)[:1]


@pytest.mark.slow
def test_a_host_that_dies_takes_the_others_down_within_seconds(job):
    hosts = job(2, ENDLESS)
    wait_for("epoch=1 ", hosts[0])
    hosts[1].kill()
    assert hosts[0].wait(timeout=15) == 1
    assert hosts[0].failure.startswith("train.py: error: the processes have not found, or have lost, each other")
    assert "Connection" in hosts[0].failure


@pytest.mark.slow
def test_a_process_that_dies_takes_its_host_and_the_others_down_within_seconds(job):
    hosts = job(2, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", hosts[0])
    (main,) = children(hosts[1].process.pid, "train.py --")[:1]
    os.kill(children(main, "train.py")[0], signal.SIGKILL)
    assert [host.wait(timeout=20) for host in hosts] == [1, 1]


@pytest.mark.slow
def test_a_host_that_never_comes_up_ends_in_a_clear_error(job):
    (host,) = job(2, {"process_group_timeout": "5"}, only=1)
    assert host.wait() == 1
    assert host.failure.startswith("train.py: error: the processes have not found, or have lost, each other within")
    assert "--process_group_timeout" in host.failure and "1/2 clients joined" in host.failure
    assert "Traceback" not in host.log


@pytest.mark.slow
def test_bad_input_is_the_reason_of_the_failure_that_sagemaker_shows(job):
    (host,) = job(1, {"trainer.max_epoch": "1"})
    assert host.wait() == 1
    assert host.failure == (
        "train.py: error: there is no option --trainer.max_epoch; did you mean --trainer.max_epochs?"
    )


@pytest.mark.slow
def test_sigterm_reaches_the_training_processes_and_the_exit_code_comes_back(job):
    (host,) = job(1, ENDLESS | {"trainer.devices": "2"})
    wait_for("epoch=1 ", host)
    host.process.terminate()
    assert host.wait(timeout=20) == 1  # the toolkit's, for any failure
    assert re.search(
        r"train.py: error: stopped by SIGTERM after step \d+; the same command goes on from \S+/last-step=\d+.ckpt\n",
        host.log,
    )
    assert "stopped by SIGTERM after step" in host.failure and "ExitCode 143" in host.log


def test_the_entrypoint_runs_any_command_and_keeps_its_exit_code():
    entrypoint = [sys.executable, ROOT / "docker/entrypoint.py"]
    assert subprocess.run([*entrypoint, "sh", "-c", "exit 5"]).returncode == 5
    assert subprocess.run([*entrypoint, "sh", "-c", "kill -9 $$"]).returncode == 128 + signal.SIGKILL
    process = subprocess.Popen([*entrypoint, "sleep", "60"])
    while not children(process.pid, "sleep 60"):
        assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=10) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_torchrun_on_two_nodes_works_unchanged(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    options = [*SYNTHETIC, "--model=tiny.Tiny", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    nodes = [
        subprocess.Popen(
            [*command, f"--node_rank={rank}", ROOT / "app/train.py", *options, "--trainer.callbacks=tiny.PrintWeights"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    ranks = weights("".join(logs))
    assert [rank.split(" weights=")[0] for rank in ranks] == ["rank=0 world_size=2", "rank=1 world_size=2"]
    assert len({rank.split(" weights=")[1] for rank in ranks}) == 1


@pytest.mark.slow
def test_torchrun_wins_over_sagemaker(tmp_path):
    environment = sagemaker_environment(tmp_path, SM_HOSTS='["algo-1.invalid", "algo-2.invalid"]')
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    options = [*SYNTHETIC, "--model=tiny.Tiny", "--trainer.accelerator=cpu", "--trainer.callbacks=tiny.PrintWeights"]
    result = subprocess.run(
        [*command, ROOT / "app/train.py", *options], env=environment, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert result.returncode == 0
    assert [rank.split(" weights=")[0] for rank in weights(result.stdout)] == [
        "rank=0 world_size=2",
        "rank=1 world_size=2",
    ]
