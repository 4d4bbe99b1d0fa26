"""A run of the command line that was killed or interrupted, and resumed, ends in the bits of one that was not."""

import json
import random
import shutil
import signal

import pytest
import torch

import crossdistill
from crossdistill import cli
from samples import launch

STEPS_PER_EPOCH, NUM_STEPS = 22, 66
TRAINING = ["train.steps=66", "train.batch_size=64", "train.lr=0.01", "train.log_every=1", "device=cpu"]
# A CNN with batch statistics, averaged and accumulated; a transformer with every kind of randomness and OFA's branches.
SETTINGS = {
    "kd": [
        *("timm/test_resnet", "student.image_size=32", "student.args.drop_path_rate=0.1"),
        *("train.ema_decay=0.95", "train.clip_grad=1.0", "train.device_batch_size=32", "data.labels_per_class=10"),
    ],
    "ofa": [
        *("timm/deit_tiny_patch16_224", "student.image_size=16", "student.args.patch_size=4"),
        *("student.args.embed_dim=32", "student.args.depth=4", "student.args.num_heads=2"),
        *("student.args.drop_path_rate=0.2", "student.args.proj_drop_rate=0.1"),
        *("train.precision=bf16", "train.label_smoothing=0.1"),
    ],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.set_num_threads(1)
    return launch.train_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.fixture(scope="module")
def arguments(teacher):
    """The command line of a method's run into a folder."""

    def of(method, out, *more):
        student, *overrides = SETTINGS[method]
        command = ["distill", "--teacher", teacher, "--student", student, "--method", method, "--data", "digits"]
        return [*command, "--out", out, *more, *overrides, *TRAINING]

    return of


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """The outcome of each method's run without a break, made when it is first asked for."""
    made = {}

    def of(method):
        if method not in made:
            out = tmp_path_factory.mktemp("whole") / method
            assert here(arguments(method, out)) == 0
            made[method] = launch.outcome(out)
        return made[method]

    return of


@pytest.fixture(scope="module")
def killed(arguments, tmp_path_factory):
    """The folder that each method's killed run leaves behind; a run is killed once, and tests work on copies."""
    made = {}

    def of(method, to):
        if method not in made:
            out = tmp_path_factory.mktemp("killed") / method
            # Any moment from the second checkpoint on, with ten steps to spare, since the signal takes its time.
            step = random.Random(method).randint(2 * STEPS_PER_EPOCH + 1, NUM_STEPS - 10)
            done = launch.stop_at(launch.start(*arguments(method, out)), out, step, signal.SIGKILL)
            assert done.returncode == -signal.SIGKILL
            made[method] = out
        assert not (made[method] / "results.json").exists()
        assert len(checkpoints(made[method])) == 2
        return shutil.copytree(made[method], to)

    return of


def checkpoints(run):
    return sorted(path for path in (run / "checkpoints").glob("step-*") if ".tmp-" not in path.name)


def here(arguments):
    """The command line in this process."""
    return cli.run([str(one) for one in arguments])


def assert_same(found, expected):
    for key, value in expected.items():
        assert found[key] == value, key


@pytest.mark.parametrize("method", ["kd", pytest.param("ofa", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(method, arguments, whole, killed, tmp_path):
    out = killed(method, tmp_path / "run")
    done = launch.run(*arguments(method, out, "--resume"))
    assert done.returncode == 0, done.stderr
    assert "not be bit-identical" not in done.stderr
    assert_same(launch.outcome(out), whole(method))


def test_an_interruption_amid_an_epoch_saves_and_resumes_bit_for_bit(arguments, whole, tmp_path):
    out = tmp_path / "run"
    step = random.Random("interrupted").randint(STEPS_PER_EPOCH + 2, STEPS_PER_EPOCH + 12)
    stopped = launch.stop_at(launch.start(*arguments("ofa", out)), out, step, signal.SIGINT)
    assert stopped.returncode == cli.EXIT_INTERRUPTED == 130
    assert "interrupted: after step" in stopped.stderr
    at = launch.last_step(out)
    assert at % STEPS_PER_EPOCH, "not amid an epoch"
    assert checkpoints(out)[-1].name == f"step-{at:08d}"
    assert here(arguments("ofa", out, "--resume")) == 0
    assert_same(launch.outcome(out), whole("ofa"))


def test_a_truncated_newest_checkpoint_is_passed_over(arguments, whole, killed, tmp_path, capsys):
    out = killed("kd", tmp_path / "run")
    newest = checkpoints(out)[-1]
    broken = newest / "student.safetensors"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    assert here(arguments("kd", out, "--resume")) == 0
    assert f"warning: skipping checkpoint {newest}: student.safetensors" in capsys.readouterr().err
    assert_same(launch.outcome(out), whole("kd"))


@pytest.mark.slow
def test_several_seeds_go_on_where_they_stood_and_a_finished_run_stays_as_it_is(
    arguments, teacher, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    process = launch.start(*arguments("kd", out, "--seeds", "0,1"))
    stopped = launch.stop_at(process, out / "kd" / "seed-1", STEPS_PER_EPOCH + 5, signal.SIGKILL)
    assert stopped.returncode == -signal.SIGKILL
    first = launch.fingerprints(out / "kd" / "seed-0")
    assert "results.json" in first
    capsys.readouterr()
    assert here(arguments("kd", out, "--seeds", "0,1", "--resume", "--json")) == 0
    results = json.loads(capsys.readouterr().out)
    assert launch.fingerprints(out / "kd" / "seed-0") == first
    assert [run["seed"] for run in results["rows"][0]["runs"]] == [0, 1]
    student, *overrides = SETTINGS["kd"]
    alone = tmp_path / "alone"
    crossdistill.distill(
        teacher, student, "digits", alone, method="kd", seeds=(1,), overrides=[*overrides, *TRAINING], quiet=True
    )
    assert_same(launch.outcome(out / "kd" / "seed-1"), launch.outcome(alone))

    before = launch.fingerprints(out, without=("report.html",))
    monkeypatch.setattr("crossdistill.runs.single.fit", None)  # nothing is trained
    assert here(arguments("kd", out, "--seeds", "0,1", "--resume", "--json")) == 0
    assert json.loads(capsys.readouterr().out) == results
    assert launch.fingerprints(out, without=("report.html",)) == before
