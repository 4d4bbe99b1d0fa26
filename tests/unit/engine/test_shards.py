"""Two processes with sharded weights train what one does, and their checkpoints fit every other number of processes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from crossdistill.engine import connect
from crossdistill.engine.copies import Copies
from crossdistill.engine.devices import shards_wanted
from crossdistill.engine.hold import hold
from crossdistill.engine.shards import Shards
from crossdistill.errors import InputError, Interrupted
from samples import train_fused
from samples.train_sharded import RUNS, fused_top1, train
from samples.training import Match, Measured, SmallNet, Stop, TensorLoader, settings

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.raises(Interrupted):
        train("small", folder / "one-to-fsdp", Stop(3))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(TESTS / "samples" / "train_sharded.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def one_process():
    """The ends of one process without compilation, by the name of the run."""
    torch.set_num_threads(1)
    plain = dict.fromkeys(("compile_student", "compile_teacher", "compile_method"), False)
    return {name: state(*train(name, **plain)) for name in RUNS}


def state(student, method, result):
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"method.{k}": v for k, v in method.state_dict().items()}
    return {**tensors, "loss": torch.tensor(result.metrics["loss"], dtype=torch.float64), "fused": fused_top1(result)}


def ranks(folder, name):
    """The state that both processes wrote, after checking that it is one."""
    first, second = (load_file(folder / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
    return first


def assert_close(found, expected, *, rtol=1e-4, atol=2e-6):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=message)


@pytest.mark.parametrize("name", RUNS)
def test_shards_end_with_the_weights_of_one_process(launched, one_process, name):
    """Micro-batches, clipping, averaging, soft and missing labels; a loss of each sample, and one of relations."""
    rounding = {"small": {"atol": 2e-5}, "half": {"rtol": 0.02, "atol": 2e-3}}  # of AdamW, and of 8 bits
    assert_close(ranks(launched, name), one_process[name], **rounding.get(name, {}))


@pytest.mark.parametrize("name", train_fused.RUNS)
def test_a_network_fused_of_both_trains_on_two_processes_as_on_one(launched, name):
    """Copies and shards, uneven shares of a batch, and rows that a method gathers itself, also with gradients."""
    assert_close(ranks(launched, name), train_fused.train(name))


def test_a_resume_of_shards_by_shards_is_exact(launched):
    undisturbed, resumed = ranks(launched, "small"), ranks(launched, "fsdp-to-fsdp")
    for name, tensor in undisturbed.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize("name", ["fsdp-to-ddp", "ddp-to-fsdp", "one-to-fsdp"])
def test_checkpoints_fit_the_other_kinds(launched, one_process, name):
    assert_close(ranks(launched, name), one_process["small"], atol=2e-5)


def test_one_process_goes_on_from_shards_with_a_warning(launched, one_process):
    with pytest.warns(UserWarning, match=r"processes 2 -> 1, parallel fsdp -> ddp"):
        resumed = state(*train("small", launched / "fsdp-to-one"))
    assert_close(resumed, one_process["small"], atol=2e-5)


@pytest.mark.parametrize("name", ["norm", "norm-ddp"])
def test_statistics_of_batches_are_the_first_processs(launched, name):
    """Also those of the last step, before which nobody brings them into line any more."""
    assert ranks(launched, name)["norm.running_mean"].abs().max() > 0


def test_checkpoints_of_shards_and_of_whole_copies_look_alike(launched):
    sharded, plain = (max((launched / name / "checkpoints").iterdir()) for name in ("fsdp-to-fsdp", "fsdp-to-ddp"))
    assert sharded.name == plain.name == "step-00000006"
    for part in ("student", "method", "optimizer", "ema"):
        ours, theirs = (load_file(path / f"{part}.safetensors") for path in (sharded, plain))
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}


def test_one_process_asked_for_shards_holds_all_of_it(tmp_path):
    run = settings(parallel="fsdp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = hold(SmallNet(), Match(), None, TensorLoader(), run, connect("cpu"))
    assert type(weights) is Copies


class Two:
    num_processes = 2


def test_the_launcher_of_accelerate_asks_for_shards_as_the_settings_do(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not shards_wanted(settings(), Two)
    assert shards_wanted(settings(parallel="fsdp"), Two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert shards_wanted(settings(), Two)
    assert not shards_wanted(settings(parallel="fsdp"), connect("cpu"))
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"FSDP_VERSION": "1"}, "FSDP of version 1"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "version 2, offloading to the CPU"),
    ],
)
def test_what_the_launcher_asks_for_and_is_not_done_is_refused(monkeypatch, changes, words):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        connect("cpu")


def test_the_whole_goes_back_to_the_cpu_also_where_measuring_it_fails():
    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.method = SmallNet(seed=1), Measured(SmallNet(seed=1))

        def to(self, device):
            self.at = device
            return self

    shards = Shards.__new__(Shards)
    shards.whole, shards.learner, shards.teacher = Whole(), Whole(), None
    shards.accelerator = SimpleNamespace(device="elsewhere")
    measuring = shards.measured()
    assert set(measuring.__enter__()) == {"fused"}
    assert shards.whole.at == "elsewhere"
    failure = RuntimeError("no figures")
    assert not measuring.__exit__(RuntimeError, failure, None)
    assert shards.whole.at == "cpu"
