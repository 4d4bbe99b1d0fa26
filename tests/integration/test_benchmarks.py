"""The benchmarks still measure: their own functions, on tiny networks and once each. Figures mean nothing here."""

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from crossdistill.analysis.environment import environment
from crossdistill.registry import METHODS
from samples.image_folder import make

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
STUDENT, TEACHER, SIDE = "test_resnet", "test_vit", 32


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the folder by its name; it and its neighbours are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in {path.stem for path in FOLDER.glob("*.py")} & (set(sys.modules) - before):
        del sys.modules[name]


def case_of(steps, *, num_classes=10, **changes):
    train = steps.loop_settings("fp32", channels_last=False, compile_all=False, batch_size=4)
    return steps.Case(STUDENT, (TEACHER,), num_classes, SIDE, 4, train.model_copy(update=changes), "cpu")


def assert_measured(row, columns, *names):
    for name in names:
        assert name in columns
        assert math.isfinite(row[name]), name
        assert row[name] > 0, name


@pytest.mark.parametrize(
    "names",
    [("fbt", "fitnet"), pytest.param([record.name for record in METHODS], marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_methods_are_measured_beside_the_reference(benchmark, monkeypatch, names):
    """Also those that need more of the teacher than the reference, with which they run in turn."""
    cost = benchmark("method_cost")
    monkeypatch.setattr(cost, "IMAGE_SIZE", 160)
    monkeypatch.setitem(cost.BATCH_SIZE, "cpu", 2)
    monkeypatch.setattr(cost, "peak_bytes", lambda run, device: run() or 1)  # the profiler's part is slow
    pair = cost.Pair(TEACHER, STUDENT, torch.device("cpu"))
    for name in names:
        row = cost.measure(pair, name, rounds=1)
        assert row["method"] == name
        assert_measured(row, cost.COLUMNS, "kd_ms", "ms", "ratio")


def test_what_one_step_allocates_is_counted(benchmark):
    timing = benchmark("timing")
    found = timing.peak_bytes(lambda: torch.ones(2**20).sum(), torch.device("cpu"))
    assert 2**22 <= found < 2**22 + 2**16


def test_a_step_is_measured_beside_its_goals(benchmark, monkeypatch):
    step, steps = benchmark("step"), benchmark("training_step")
    monkeypatch.setattr(steps, "NUM_STORED", 16)
    monkeypatch.setattr(steps, "SHARD_SIZE", 8)
    rows = {row["method"]: row for row in step.measured_rows(steps.Live(case_of(steps)), ("kd", "ofa"), rounds=1)}
    for row in rows.values():
        assert_measured(row, step.COLUMNS, "ratio_loop", "ratio_online", "ratio_stored", "pytorch_ms")
        assert_measured(row, step.COLUMNS, "flops_online", "online_mib")
    assert rows["kd"]["flops_online"] == pytest.approx(1, abs=0.05)
    assert rows["ofa"]["flops_online"] > rows["kd"]["flops_online"]
    assert "Loop" in step.table(list(rows.values()))


def test_the_plain_step_in_pytorch_trains_as_the_loop_does(benchmark):
    """Of one network, from the same weights, on the same batches: so the two may stand beside each other."""
    steps = benchmark("training_step")
    ends = []
    for way in ("plain_step", "pytorch_step"):
        live = steps.Live(case_of(steps, schedule="constant", warmup_epochs=0.0))
        run = getattr(live, way)()
        for _ in range(3):
            run()
        ends.append(live.student.state_dict())
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_a_point_of_growth_is_measured(benchmark, monkeypatch, tmp_path):
    growth, steps = benchmark("growth"), benchmark("training_step")
    monkeypatch.setattr(steps, "NUM_STORED", 16)
    monkeypatch.setattr(steps, "SHARD_SIZE", 8)
    point = growth.Point("classes", 10, case_of(steps), {"kd": {}, "ofa": {"stages": [1]}})
    rows = list(growth.measured_rows(point, rounds=2))
    assert {(row["method"], row["answers"]) for row in rows} >= {("kd", "online"), ("kd", "stored"), ("ofa", "online")}
    for row in rows:
        assert_measured(row, growth.COLUMNS, "ratio", "plain_ms", "step_ms")


@pytest.mark.skipif(importlib.util.find_spec("torchdistill") is None, reason="torchdistill is not installed")
def test_peers_do_the_same_work_and_are_measured(benchmark, monkeypatch):
    peers, steps = benchmark("peers"), benchmark("training_step")
    monkeypatch.setattr(steps, "NUM_STORED", 16)
    monkeypatch.setattr(steps, "SHARD_SIZE", 8)
    rate = {"lr": peers.LEARNING_RATE, "weight_decay": 0.0, "schedule": "constant", "warmup_epochs": 0.0}
    live = steps.Live(case_of(steps, **rate, cross_entropy_weight=peers.HARD_WEIGHT))
    rows = {row["step"]: row for row in peers.measure(live, rounds=1)}
    assert set(rows) == {peers.PLAIN, peers.TEACHER, peers.TIMM, peers.TORCHDISTILL, peers.OURS, peers.STORED}
    for row in rows.values():
        assert_measured(row, peers.COLUMNS, "ms", "ratio_parts", "ratio_ours", "ratio_stored")


@pytest.mark.parametrize("transforms", [0, 1], ids=["crops", "everything"])
def test_training_with_every_loader_is_measured(benchmark, transforms, tmp_path):
    whole = benchmark("end_to_end")
    make(tmp_path, ("a", "b"))
    names = list(whole.TRANSFORMS)
    case = whole.Case("tiny", tmp_path, names[transforms], SIDE, 4, 0, "cpu", 2)
    rows = list(whole.compare(case, STUDENT, 1, dict.fromkeys(whole.MAKERS, 1.0)))
    assert {(row["ours_are"], row["peer"]) for row in rows} == {(a, b) for a in whole.OURS for b in whole.PEERS}
    for row in rows:
        assert_measured(row, whole.COLUMNS, "ratio", "first_epoch_ours", "first_epoch_peer", "ours", "peer_speed")


def test_an_epoch_of_few_steps_is_refused(benchmark, tmp_path):
    whole = benchmark("end_to_end")
    (tmp_path / "train" / "a").mkdir(parents=True)
    for number in range(130):
        (tmp_path / "train" / "a" / f"{number}.png").touch()
    assert whole.batch_size(tmp_path, None) == 2
    assert whole.batch_size(tmp_path, 2) == 2
    with pytest.raises(ValueError, match="raise --limit"):
        whole.batch_size(tmp_path, 3)


def test_a_cell_of_the_federated_grid_is_run_and_has_its_row(benchmark, monkeypatch, tmp_path):
    federated = benchmark("federated")
    monkeypatch.setattr(federated, "ROUNDS", 1)
    monkeypatch.setattr(federated, "MODELS", dict.fromkeys(federated.MODELS, federated.MODELS["mlp"]))
    monkeypatch.setitem(federated.EPOCHS, 30, 1)
    options = SimpleNamespace(data="digits", out=tmp_path, seeds=[0], alphas=[0.5], sizes=[30], variants=[])
    settings = federated.settings_of("knfu guard without net attacked", 0.5, 30, 0, options)
    record = federated.run(settings, attacked=True)
    figures = federated.figures_of(record)
    row = federated.row_of("knfu", 0.5, 30, [record | {"environment": environment()}], options)
    assert set(row) == set(federated.COLUMNS)
    for name in ("alma_mean", "balanced_mean", "honest_mean", "bytes_up"):
        assert math.isfinite(row[name]), name
    assert figures["went_back"] == 0
    weights = record["rounds"][-1]["weights"]
    assert [weights[2][attacker] for attacker in range(federated.ATTACKERS)] == [0, 0]
    assert settings_alike(federated, options)


def settings_alike(federated, options):
    """All variants of a cell have the same data, budget and seed."""
    made = [federated.settings_of(name, 0.5, 100, 0, options) for name in federated.VARIANTS]
    same = {(one.data.source, one.rounds, one.seed, one.partition.model_dump_json()) for one in made}
    return len(same) == 1


def test_the_growth_of_fusion_is_measured(benchmark, tmp_path):
    scale = benchmark("federated_scale")
    paths = scale.write_knowledge(tmp_path, 5, 50, 4, 0)
    measured = scale.fused(paths, ["fusion.beta=10"], 1)
    assert measured["peak_mib"] >= measured["start_mib"] > 0
    assert 1 <= measured["neighbours"] <= 5
    row = next(one for one in scale.byte_rows(0) if one["network"] == "resnet18" and one["transport"] == "fp16")
    assert row["bytes"] == row["samples"] * row["classes"] * 2
