"""Training on hosts that SageMaker's real toolkit simulates on this machine, without Docker."""

import subprocess
import sys

import pytest
import torch
from fake_aws.toolkit import free_port, sagemaker_environment
from runs.programs import ENVIRONMENT, ROOT, SYNTHETIC
from runs.results import assert_all_ranks_have_one_model, epoch_lines, printed_weights

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
TRAIN = (ROOT / "app/train.py", *SYNTHETIC, "--model=tiny.Tiny", "--trainer.accelerator=cpu", "--trainer.max_epochs=1")
TRAIN += ("--trainer.callbacks=tiny.PrintWeights",)


@pytest.mark.slow
def test_two_hosts_with_two_processes_each_train_one_model(job):
    hosts = job(2, {"trainer.devices": "2"})
    assert [host.wait() for host in hosts] == [0, 0], hosts[0].log + hosts[1].log
    assert_all_ranks_have_one_model(hosts[0].log + hosts[1].log, world_size=4)
    network = torch.load(hosts[0].model_dir / "model.pt", weights_only=True)
    assert network["2.weight"].shape == (10, 192)
    assert not list(hosts[1].model_dir.iterdir())


@pytest.mark.slow
def test_two_hosts_give_the_losses_of_one_host_with_two_processes(job):
    two_hosts = job(2)
    assert [host.wait() for host in two_hosts] == [0, 0]
    (one_host,) = job(1, {"trainer.devices": "2"})
    assert one_host.wait() == 0
    hosts = (two_hosts[0], one_host)
    two, one = ([line | {"images_per_second": 0} for line in epoch_lines(host.log)] for host in hosts)
    assert two == one and len(one) == 2
    assert printed_weights(two_hosts[0].log) == printed_weights(one_host.log)[:1]


@pytest.mark.slow
def test_bad_input_is_the_reason_of_the_failure_that_sagemaker_shows(job):
    (host,) = job(1, {"trainer.max_epoch": "1"})
    assert host.wait() == 1
    assert host.failure == ("train.py: error: unknown option --trainer.max_epoch; did you mean --trainer.max_epochs?")


@pytest.mark.slow
def test_torchrun_on_two_nodes_works_with_their_numbers(tmp_path):
    nodes = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
    options = (*TRAIN, "--trainer.num_nodes=2", "--trainer.devices=1")
    output = {"stdout": subprocess.PIPE, "text": True}
    nodes = [
        subprocess.Popen([*TORCHRUN, *nodes, f"--node_rank={rank}", *options], cwd=tmp_path, env=ENVIRONMENT, **output)
        for rank in range(2)
    ]
    logs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert_all_ranks_have_one_model("".join(logs), world_size=2)


@pytest.mark.slow
def test_torchrun_overrides_the_hosts_of_sagemaker(tmp_path):
    environment = sagemaker_environment(tmp_path, SM_HOSTS='["algo-1.invalid"]', SM_CURRENT_HOST="algo-1.invalid")
    command = [*TORCHRUN, "--nproc_per_node=2", f"--master_port={free_port()}", *TRAIN]
    command += ["--trainer.num_nodes=1", "--trainer.devices=2"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 0
    assert_all_ranks_have_one_model(result.stdout, world_size=2)
