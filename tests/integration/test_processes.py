"""Two processes of the command line, on the CPU, train what one does; they fail together and leave nothing behind."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import crossdistill
from samples import launch

# Two processes add up a gradient in another order than one does, so it differs in the last bits of float32 (6e-8 of
# its size). SGD passes that on in proportion: after 24 steps weights of size 1 differ by some 1e-7 (3e-7 was seen). An
# adaptive optimiser would turn rounding noise around zero into whole steps, and batch statistics would differ in fact.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-6}
TRAINING = ["train.steps=24", "train.batch_size=64", "train.optimizer=sgd", "train.weight_decay=0.01"]
TRAINING += ["train.log_every=1", "device=cpu"]
RUNS = {
    "kd": [
        *("timm/deit_tiny_patch16_224", "student.image_size=16", "student.args.patch_size=4"),
        *("student.args.embed_dim=32", "student.args.depth=2", "student.args.num_heads=2"),
        *("train.lr=0.02", "train.ema_decay=0.9", "train.device_batch_size=16", "data.labels_per_class=20"),
    ],
    "dist": [
        "timm/mixer_tiny",
        "student.image_size=16",
        "student.args.num_blocks=3",
        "train.lr=0.002",
        "train.clip_grad=5.0",
    ],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.set_num_threads(1)
    return launch.train_teacher(tmp_path_factory.mktemp("teacher") / "run")


def arguments(teacher, method, out, *more):
    student, *overrides = RUNS[method]
    command = ["distill", "--teacher", teacher, "--student", student, "--method", method, "--data", "digits"]
    return [*command, "--out", out, *more, *overrides, *TRAINING]


@pytest.fixture(scope="module", params=RUNS)
def pair(request, teacher, tmp_path_factory):
    """Method, the folder of the one-process run, that of the two-process run, and what the latter printed."""
    method, folder = request.param, tmp_path_factory.mktemp(request.param)
    student, *overrides = RUNS[method]
    crossdistill.distill(
        teacher, student, "digits", folder / "one", method=method, overrides=[*overrides, *TRAINING], quiet=True
    )
    done = launch.run(*arguments(teacher, method, folder / "two", "--json"), num_processes=2)
    assert done.returncode == 0, done.stderr
    return method, folder / "one", folder / "two", done


def test_two_processes_end_with_the_weights_of_one(pair):
    _, one, two, _ = pair
    expected, found = (load_file(folder / "student" / "model.safetensors") for folder in (one, two))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


def test_losses_and_exact_counts_agree(pair):
    _, one, two, _ = pair
    expected, found = launch.outcome(one), launch.outcome(two)
    for (step, losses), (other_step, other_losses) in zip(expected["losses"], found["losses"], strict=True):
        assert step == other_step
        assert other_losses == pytest.approx(losses, rel=1e-4)
    assert [line["step"] for line in found["evaluations"]] == [22, 24]
    for ours, theirs in zip(expected["evaluations"], found["evaluations"], strict=True):
        assert theirs["num_samples"] == 360  # every test image once, over both
        # Accuracies are counts of 360; an image whose two best classes tie to the last bits may fall either way.
        assert abs(theirs["top1"] - ours["top1"]) * 360 < 1.5
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)


def test_one_folder_with_one_writer_and_the_same_results(pair):
    _, one, two, done = pair
    assert files(two) == files(one)
    assert set(two.parent.iterdir()) == {one, two}
    results, alone = (json.loads((folder / "results.json").read_text()) for folder in (two, one))
    assert json.loads(done.stdout) == results  # printed once
    assert results["data"] == alone["data"]
    for row, other in zip(results["rows"], alone["rows"], strict=True):
        assert [row[key] for key in FACTS] == [other[key] for key in FACTS]
    assert results["rows"][1]["top1_mean"] == alone["rows"][1]["top1_mean"]  # the teacher, counted exactly
    log = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "train"] == list(range(1, 25))


FACTS = ("role", "name", "method", "num_labels", "num_parameters", "gmacs")


def files(folder):
    """Names below a folder; those of TensorBoard's event files hold the time."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted("tensorboard" if "tfevents" in name else name for name in names)


def test_a_taken_folder_ends_both_before_anything_is_written(teacher, tmp_path):
    """Only the main process looks; the other must hear of it, and neither may go on or wait."""
    (tmp_path / "config.yaml").write_text("{}")
    done = launch.run(*arguments(teacher, "kd", tmp_path), num_processes=2)
    assert done.returncode == 1
    assert f"given: output folder {tmp_path}, which holds a run already" in done.stderr
    assert "crossdistill/cli" not in done.stderr  # no traceback of ours
    assert files(tmp_path) == ["config.yaml"]


def test_what_breaks_on_one_process_ends_both(teacher, tmp_path):
    script = launch.HERE / "fail_on_one.py"
    more = arguments(teacher, "kd", tmp_path / "run", "--method", "breaks-on-one")
    done = launch.run(*more, num_processes=2, script=script)
    assert done.returncode == 1
    assert "process 1, failed: RuntimeError: the second process broke" in done.stderr
    assert "process group open at exit: False" in done.stderr
    assert "process group open at exit: True" not in done.stderr
    assert not (tmp_path / "run" / "results.json").exists()


def left_in_the_last_epoch(run, copy):
    """A copy of a run as after a kill."""
    out = shutil.copytree(run, copy)
    (out / "results.json").unlink()
    shutil.rmtree(out / "student")
    shutil.rmtree(max((out / "checkpoints").iterdir()))
    return out


@pytest.mark.parametrize("pair", ["kd"], indirect=True)
def test_shards_asked_for_by_accelerates_launcher_go_on_where_whole_copies_stopped(pair, teacher, tmp_path):
    method, one, two, _ = pair
    out = left_in_the_last_epoch(two, tmp_path / "run")
    done = launch.run(*arguments(teacher, method, out, "--resume"), num_processes=2, by=launch.ACCELERATE_FSDP)
    assert done.returncode == 0, done.stderr
    assert "resumed elsewhere (parallel ddp -> fsdp)" in done.stderr
    expected, found = (load_file(folder / "student" / "model.safetensors") for folder in (one, out))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
    assert set(files(out)) == set(files(two))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["kd"], indirect=True)
def test_two_processes_resume_what_two_processes_left(pair, teacher, tmp_path):
    """The log then has every step once."""
    method, _, two, _ = pair
    out = left_in_the_last_epoch(two, tmp_path / "run")
    done = launch.run(*arguments(teacher, method, out, "--resume"), num_processes=2)
    assert done.returncode == 0, done.stderr
    assert launch.outcome(out) == launch.outcome(two)
