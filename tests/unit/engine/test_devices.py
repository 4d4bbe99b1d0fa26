"""Devices, seeds and signals: small things that must be exact."""

import os
import random
import signal
import threading

import numpy as np
import pytest
import torch

from crossdistill.engine import connect, process
from crossdistill.engine.interrupt import StopSignal
from crossdistill.engine.log import MetricsLog, read
from crossdistill.engine.record import epoch_of, total_steps
from crossdistill.engine.seeding import seed_step
from crossdistill.errors import InputError
from samples.training import settings


def test_precision_may_change_from_run_to_run():
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        accelerator = connect("cpu", precision)
        with accelerator.autocast():
            assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype
        assert accelerator.device.type == "cpu"
        assert connect("cpu", precision).state.mixed_precision == accelerator.state.mixed_precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_bad_input():
    with pytest.raises(InputError, match="device cuda"):
        connect("cuda")
    assert connect("auto").device.type == "cpu"


@pytest.mark.parametrize(("word", "hint"), [("cud", "did you mean 'cuda'"), ("mps", "known: auto, cpu, cuda")])
def test_an_unknown_device_is_bad_input(word, hint):
    with pytest.raises(InputError, match=rf"device '{word}'[\s\S]*{hint}"):
        connect(word)


def test_process_reads_the_launchers_words(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process() == (2, 4)


def test_each_seed_step_and_rank_draws_its_own_numbers():
    def draws(*place):
        seed_step(*place)
        return torch.rand(1).item(), np.random.rand(), random.random()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [draws(*place) for place in places]
    assert drawn == [draws(*place) for place in places]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(places)


def test_a_stop_signal_restores_what_was_there_before():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def run():
        with StopSignal() as stop:
            found.append(stop.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


@pytest.mark.parametrize(
    ("changes", "steps"), [({"epochs": 3}, 15), ({"steps": 7}, 7), ({"epochs": None}, 500)], ids=str
)
def test_the_length_of_a_run(changes, steps):
    assert total_steps(settings(**changes), 5) == steps


def test_epochs_are_counted_from_one():
    assert [epoch_of(step, 4) for step in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_the_log_drops_what_comes_after_the_place_of_resume(tmp_path):
    log = MetricsLog(tmp_path, step=0, evaluated=())
    for step in (1, 2, 3, 4):
        log.write({"kind": "train", "step": step, "epoch": 1, "losses": {"kd": 0.5}})
    for step in (2, 3):
        log.write({"kind": "eval", "step": step, "epoch": 1, "top1": 0.5})
    log.close()
    MetricsLog(tmp_path, step=3, evaluated=(2,)).close()
    kept = [(line["kind"], line["step"]) for line in read(tmp_path / "metrics.jsonl")]
    assert kept == [("train", 1), ("train", 2), ("train", 3), ("eval", 2)]


def test_events_hold_the_same_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, step=0, evaluated=())
    log.write({"kind": "train", "step": 5, "epoch": 1, "lr": 0.25, "losses": {"kd": 0.5}})
    log.write({"kind": "eval", "step": 5, "epoch": 1, "top1": 0.75})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "train/epoch": [(5, 1.0)],
        "train/lr": [(5, 0.25)],
        "train/kd": [(5, 0.5)],
        "eval/epoch": [(5, 1.0)],
        "eval/top1": [(5, 0.75)],
    }


def test_a_log_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(InputError, match="cannot write below"):
        MetricsLog(tmp_path / "run", step=0, evaluated=())
