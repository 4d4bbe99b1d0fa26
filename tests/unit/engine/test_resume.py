"""A run that was stopped, however it was stopped, ends in the same bits as one that was not."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from crossdistill.engine import fit
from crossdistill.engine.log import read
from crossdistill.engine.progress import Quiet
from crossdistill.errors import InputError, Interrupted
from crossdistill.teachers import FrozenTeacher
from samples.training import Match, SmallNet, Stop, TensorLoader, settings

TESTS = Path(__file__).resolve().parents[2]
SETTINGS = {"ema_decay": 0.9, "clip_grad": 1.0, "schedule": "cosine"}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def train(out, *, student=None, teacher_seed=2, reporter=None, seed=3, loader=None, fingerprint=None, **changes):
    """The same run as tests/samples/train_once.py."""
    loader = loader or TensorLoader(micro_batch=8, unlabelled=5)
    student, method = student or SmallNet(seed=1, dropout=0.3, batch_norm=True), Match()
    result = fit(
        student,
        method,
        FrozenTeacher(SmallNet(seed=teacher_seed)),
        loader,
        loader.evaluation(),
        settings=settings(**{**SETTINGS, **changes}),
        seed=seed,
        device="cpu",
        out=out,
        reporter=reporter or Quiet(),
        fingerprint=fingerprint,
    )
    return {f"student.{k}": v for k, v in student.state_dict().items()} | dict(method.state_dict()), result


def elsewhere(out, action, value):
    """Run in a process of its own and return how it ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "samples" / "train_once.py"), str(out), action, str(value)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def assert_same_run(one, other):
    (weights, result), (other_weights, other_result) = one, other
    assert weights.keys() == other_weights.keys()
    for name in weights:
        assert torch.equal(weights[name], other_weights[name]), name
    assert result.history == other_result.history
    assert result.metrics == other_result.metrics
    assert result.steps == other_result.steps


@pytest.mark.parametrize(("action", "step"), [("kill", 7), ("kill-writing", 8)])
def test_a_killed_process_is_resumed_bit_for_bit(tmp_path, action, step):
    """Steps 1 to 12 in three epochs of four: killed amid the second, and while its checkpoint is written."""
    killed = elsewhere(tmp_path / "run", action, step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left[0] == "step-00000004"
    assert len(left) == (2 if action == "kill-writing" else 1)
    assert_same_run(train(tmp_path / "run"), train(None))
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 6, 8, 12])
def test_an_interrupted_run_is_resumed_bit_for_bit(tmp_path, step, number):
    """Also right after the last step of an epoch, before its evaluation, and after the last step of all."""
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=rf"after step {step}; saved in .*step-0000{step:04d}"):
        train(tmp_path, reporter=Stop(step, number))
    assert signal.getsignal(number) == before
    assert_same_run(train(tmp_path), train(None))


def test_interrupted_twice_and_finished_twice(tmp_path):
    for step in (2, 3):
        with pytest.raises(Interrupted):
            train(tmp_path, reporter=Stop(step))
    once = train(tmp_path)
    assert_same_run(once, train(None))
    assert_same_run(train(tmp_path), once)  # nothing is left to do, and the answer is the same


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd"},
        {"optimizer": "lookahead_adamw"},
        {"optimizer": "lion"},
        {"precision": "bf16"},
        {"schedule": "step", "schedule_per": "epoch", "decay_epochs": 1, "warmup_epochs": 1},
        {"ema_decay": None, "steps": 10},
    ],
    ids=str,
)
def test_other_settings_resume_bit_for_bit(tmp_path, changes):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(7), **changes)
    assert_same_run(train(tmp_path, **changes), train(None, **changes))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_best_epoch_survives_a_resume(tmp_path, ema_decay):
    changes = {"select": "best", "lr": 0.5, "epochs": 6, "ema_decay": ema_decay}
    whole = train(None, **changes)
    assert whole[1].best_epoch < 6
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(22), **changes)
    resumed = train(tmp_path, **changes)
    assert_same_run(resumed, whole)
    assert resumed[1].best_epoch == whole[1].best_epoch


def test_a_mid_epoch_interruption_without_a_folder_saves_nothing():
    with pytest.raises(Interrupted, match="after step 5; nothing saved"):
        train(None, reporter=Stop(5))


@pytest.fixture
def interruptible():
    """As in a terminal: a job that a shell starts in the background ignores SIGINT from birth."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_acts_at_once(tmp_path):
    class Impatient(Quiet):
        def stepped(self, step):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, reporter=Impatient())


def test_the_log_has_each_step_once_after_a_kill(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, log_every=1)
    with pytest.raises(Interrupted):
        train(broken, log_every=1, reporter=Stop(10))
    # As after a kill: lines that are later than the checkpoint, and one cut short.
    log = broken / "metrics.jsonl"
    later = {"kind": "train", "step": 11, "losses": {}}
    log.write_text(log.read_text() + json.dumps(later) + "\n" + json.dumps({"kind": "eval", "step": 12}) + '\n{"ki')
    train(broken, log_every=1)
    timed = ("images_per_second", "data_wait_share")
    lines = [
        [{k: v for k, v in line.items() if k not in timed} for line in read(path / "metrics.jsonl")]
        for path in (whole, broken)
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0] if line["kind"] == "train"] == list(range(1, 13))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 0.5}, r"with other settings \(train.lr: was 0.02, now 0.5\)"),
        ({"seed": 4}, r"seed: was 3, now 4"),
        ({"teacher_seed": 9}, r"with another teacher \(teacher: was '[0-9a-f]{64}', now '[0-9a-f]{64}'\)"),
        ({"student": SmallNet(name="other")}, r"student: was 'small', now 'other'"),
        ({"loader": TensorLoader(num_samples=80)}, r"steps_per_epoch: was 4, now 5"),
        ({"fingerprint": {"data": {"source": "digits"}}}, r"data.source: was 'unset', now 'digits'"),
        ({"student": SmallNet(batch_norm=False)}, r"which does not fit: .*norm.weight"),
    ],
)
def test_a_resume_with_something_else_is_refused(tmp_path, changes, words):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(2))
    with pytest.raises(InputError, match=words):
        train(tmp_path, **changes)


def test_what_changes_only_where_and_how_fast_may_change_with_a_warning(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(6))
    with pytest.warns(UserWarning, match=r"resumed elsewhere \(precision fp32 -> bf16\): .* not be bit-identical"):
        train(tmp_path, precision="bf16", log_every=5)
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match=r"precision fp32 -> bf16|threads 1 -> 2"):
        train(tmp_path)


def test_an_unchanged_resume_does_not_warn(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path)


def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(10))
    broken = tmp_path / "checkpoints" / "step-00000010" / "student.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"skipping checkpoint .*step-00000010: student.safetensors"):
        resumed = train(tmp_path)
    assert_same_run(resumed, train(None))


def test_a_full_disk_ends_the_run_with_advice_and_an_intact_checkpoint(tmp_path):
    """A real limit on the size of files stands in for the disk; the second attempt has room."""
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(2))
    limited = elsewhere(tmp_path, "file-limit", 2500)
    assert limited.returncode == 2, limited.stderr
    assert "File too large" in limited.stdout
    assert "make room, then resume" in limited.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert_same_run(train(tmp_path), train(None))
