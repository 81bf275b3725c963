"""Tests of the benchmarks: the alternatives do the same work, and the calculations are right."""

import pytest
import torch
from fast import FastNet
from measuring import Result, seconds_per_step
from other_hosts import NETWORK, bytes_sent, communication_seconds, efficiency
from our_trainer import time_train_py
from parts.processes import calculate
from parts.steps import recipe, time_loop, time_stock
from pytorch_lightning import seed_everything
from synthetic import SyntheticCIFAR10DataModule


@pytest.mark.slow
def test_loop_stock_trainer_and_train_py_end_with_the_same_weights(monkeypatch):
    networks, configure = [], FastNet.configure_optimizers
    monkeypatch.setattr(FastNet, "configure_optimizers", lambda self: networks.append(self.network) or configure(self))
    images = SyntheticCIFAR10DataModule(num_train_images=600, num_test_images=10).read()
    monkeypatch.setattr("measuring.read_images", lambda: images)
    task = recipe("cpu")
    task.num_steps, task.data["batch_size"] = 4, 60
    task.options.append("--data.batch_size=60")
    for run in (
        lambda: time_loop(task, "cpu"),
        lambda: time_stock(task, "cpu"),
        lambda: time_train_py(task.options, task.num_steps),
    ):
        seed_everything(42)
        assert len(run()) == task.num_steps
    loop, *others = [torch.cat([weight.flatten() for weight in each.parameters()]) for each in networks]
    assert len(others) == 2 and all(torch.equal(weights, loop) for weights in others)


def test_a_ring_all_reduce_sends_all_but_one_nth_of_the_gradients_twice():
    assert [bytes_sent(1000, num) for num in (1, 2, 4)] == [0, 4000, 6000]


def test_the_network_limits_communication_between_hosts():
    assert communication_seconds(10**6, num_hosts=2) == bytes_sent(10**6, 8) / NETWORK
    assert communication_seconds(10**6, num_hosts=1) < communication_seconds(10**6, num_hosts=2) / 2


def test_efficiency_is_calculated_for_both_networks_on_up_to_eight_hosts():
    results = {result.what: result.value for result in calculate() if result.what.endswith("efficiency at peak")}
    assert len(results) == 8 and all(0 < value < 1 for value in results.values())


def test_efficiency_falls_with_more_hosts_and_longer_communication():
    values = [efficiency(0.1, 10**7, num_hosts) for num_hosts in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True) and 0 < values[-1] < values[0] < 1
    assert efficiency(communication_seconds(10**7, 2), 10**7, 2) == pytest.approx(0.5)


def test_seconds_per_step_is_the_mean_over_steps_of_the_median_over_rounds():
    assert seconds_per_step([[1, 10], [2, 20], [900, 30]]) == 11


def test_a_result_reports_whether_it_meets_its_target():
    at_least, at_most = {"least": 0.9}, {"most": 0.9}
    assert [Result("", value, **at_least).is_met for value in (0.8, 0.9)] == [False, True]
    assert [Result("", value, **at_most).is_met for value in (0.9, 1.0)] == [True, False]
    assert Result("", 1).is_met is None and str(Result("speed", 1)).split() == ["speed", "1", "times"]
