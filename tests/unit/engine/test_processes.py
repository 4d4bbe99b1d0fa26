"""Two processes train what one would, and agree on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samples.train_two import RUNS, train

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(TESTS / "samples" / "train_two.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_hold_what_one_process_computes(launched, name):
    torch.set_num_threads(1)
    first, second = (load_file(launched / f"{name}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key
    student, method, result = train(name)
    assert first["top1"].item() == result.metrics["top1"]
    fused = [line["fused_top1"] for line in result.history if "fused_top1" in line]
    assert first["fused"].tolist() == fused
    assert len(fused) == (3 if name == "measured" else 0)
    alone = {f"student.{k}": v for k, v in student.state_dict().items()}
    alone |= {f"method.{k}": v for k, v in method.state_dict().items()}
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=1e-4, atol=2e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", RUNS)
def test_only_the_main_process_writes(launched, name):
    lines = (launched / name / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"eval"' in line]) == 3
    assert len(list((launched / name / "tensorboard").iterdir())) == 1


def test_a_signal_to_one_process_stops_both_at_the_same_step(launched):
    texts = [(launched / f"stopped-{rank}.txt").read_text() for rank in (0, 1)]
    assert all("interrupted after step 6" in text for text in texts)  # the losses are read every third step
    first, second = (load_file(launched / f"stopped-{rank}.safetensors") for rank in (0, 1))
    whole = load_file(launched / "match-0.safetensors")
    for key in first:
        assert torch.equal(first[key], second[key])
        assert torch.equal(first[key], whole[f"student.{key}"])
