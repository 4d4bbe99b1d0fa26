"""Loss scaling in fp16: gradients that overflow cost a step and nothing else."""

import math

import pytest
import torch

from crossdistill.engine import fit
from crossdistill.engine.checkpoint import latest
from crossdistill.engine.log import read
from crossdistill.engine.progress import Quiet
from crossdistill.errors import InputError, Interrupted
from samples.training import Alone, SmallNet, Stop, TensorLoader, settings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS, FIRST_SCALE = 40, 65536.0
# At the first scale a gradient of 50 / 16 is far beyond 65504, the largest number of fp16; a few halvings mend that.
LOUD = {"steps": STEPS, "log_every": 1, "precision": "fp16", "cross_entropy_weight": 50.0, "lr": 0.01}


def train(out=None, method=None, reporter=None, **changes):
    loader = TensorLoader()
    student = SmallNet(seed=1)
    run = settings(**LOUD | changes)
    where = {"device": "cuda", "out": out, "reporter": reporter or Quiet()}
    result = fit(student, method or Alone(), None, loader, loader.evaluation(), settings=run, **where)
    return student, result


@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_overflowing_steps_are_skipped_and_not_called_broken(tmp_path, clip_grad):
    student, result = train(tmp_path, clip_grad=clip_grad)
    state = latest(tmp_path / "checkpoints").state
    skipped = STEPS - int(state["optimizer"]["state"][0]["step"])
    assert 1 <= skipped < 15
    assert state["scaler"]["scale"] == FIRST_SCALE / 2**skipped
    assert result.steps == STEPS  # a skipped step is one all the same: the data go on
    lines = [line for line in read(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    losses = [line["losses"]["cross_entropy"] for line in lines]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert all(tensor.isfinite().all() for tensor in student.state_dict().values())


def test_clipping_sees_gradients_without_their_scale():
    """Plain SGD at a rate of 1 moves by the gradient: by the limit where it is longer, as it is where it is not."""
    lengths = []
    for clip_grad in (0.01, 1e6):
        changes = {"steps": 1, "cross_entropy_weight": 0.2, "lr": 1.0, "schedule": "constant", "clip_grad": clip_grad}
        student, _ = train(optimizer="momentum", momentum=0.0, weight_decay=0.0, **changes)
        before = SmallNet(seed=1).state_dict()
        moved = [(student.state_dict()[name].cpu() - before[name]).flatten() for name in before]
        lengths.append(torch.cat(moved).norm().item())
    assert lengths[0] == pytest.approx(0.01, rel=1e-2)
    assert 0.02 < lengths[1] < 10  # not 65536 times as long


def test_a_skipped_step_leaves_the_moving_average(tmp_path):
    """Two steps, both skipped: weights and average are those at the start."""
    train(tmp_path, steps=2, ema_decay=0.9)
    state = latest(tmp_path / "checkpoints").state
    assert state["scaler"]["scale"] == FIRST_SCALE / 4
    start = SmallNet(seed=1).state_dict()
    for name, tensor in start.items():
        assert torch.equal(state["student"][name], tensor)
        assert torch.equal(state["ema"][name], tensor)


def test_a_resume_takes_up_the_scale_bit_for_bit(tmp_path):
    whole, result = train(ema_decay=0.9, clip_grad=1.0)
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(11), ema_decay=0.9, clip_grad=1.0)
    resumed, again = train(tmp_path, ema_decay=0.9, clip_grad=1.0)
    assert again.history == result.history
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_gradients_that_no_scale_mends_end_the_run():
    """The square root of 0 has a sound value and a broken gradient."""

    class Breaks(Alone):
        def forward(self, student, teacher, batch):
            return {"root": (student.logits * 0).float().sum().sqrt()}

    with pytest.raises(InputError, match=r"gradients are not finite in .* steps in a row"):
        train(method=Breaks(), steps=100)
