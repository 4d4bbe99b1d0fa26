"""Channel-last memory: the same numbers but for rounding, and resumed bit for bit."""

import pytest
import torch

from crossdistill.contracts import Batch
from crossdistill.engine import fit
from crossdistill.engine.hold import to_channels_last
from crossdistill.errors import Interrupted
from crossdistill.methods.ofa import OFA
from crossdistill.models import build
from crossdistill.teachers import FrozenTeacher
from samples.training import Pictures, Stop, settings

SIZE = 32


class Watched(FrozenTeacher):
    """Notes how its images and weights lie in memory."""

    def signals(self, batch: Batch):
        image = batch.images["teacher0"]
        weight = next(p for p in self.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
        self.seen = [tensor.is_contiguous(memory_format=torch.channels_last) for tensor in (image, weight)]
        return super().signals(batch)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def train(out=None, student=None, reporter=None, **changes):
    """A small residual network and exit branches, taught by another; all weights, result and teacher."""
    torch.manual_seed(0)
    student = student or build("test_resnet", num_classes=4, image_size=SIZE)
    teacher = Watched(build("test_efficientnet", num_classes=4, image_size=SIZE))
    method = OFA.build(student.spec, teacher.spec, num_classes=4)
    loader = Pictures()
    changes = {"steps": 4, "lr": 0.001, "ema_decay": 0.5, "optimizer": "sgd", "channels_last": True, **changes}
    result = fit(
        student,
        method,
        teacher,
        loader,
        loader.evaluation(),
        settings=settings(**changes),
        device="cpu",
        out=out,
        reporter=reporter,
    )
    return {**student.state_dict(), **{f"method.{k}": v for k, v in method.state_dict().items()}}, result, teacher


def test_weights_and_losses_equal_those_of_contiguous_memory():
    (last, result, teacher), (first, other, other_teacher) = train(), train(channels_last=False)
    assert teacher.seen == [True, True]
    assert other_teacher.seen == [False, False]
    kernels = [k for k, v in last.items() if v.ndim == 4 and v.shape[1] > 1 and v.shape[2] > 1]
    assert any(k.startswith("method.") for k in kernels) or len(kernels) > 5
    for name in kernels:
        assert last[name].is_contiguous(memory_format=torch.channels_last), name
        assert not first[name].is_contiguous(memory_format=torch.channels_last), name
    for name, tensor in first.items():
        torch.testing.assert_close(last[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    assert result.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resume_is_exact(tmp_path, optimizer):
    whole, result, _ = train(optimizer=optimizer)
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(2), optimizer=optimizer)
    resumed, again, _ = train(tmp_path, optimizer=optimizer)
    assert again.history == result.history
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_a_contiguous_checkpoint_goes_on_channel_last_with_a_warning(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, reporter=Stop(2), channels_last=False)
    with pytest.warns(UserWarning, match=r"channels_last False -> True"):
        resumed, _, _ = train(tmp_path)
    whole, _, _ = train(channels_last=False)
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-5)


def test_only_four_dimensions_are_turned():
    module = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv3d(2, 3, 3), torch.nn.BatchNorm2d(3)])
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    to_channels_last(module)
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert module[1].weight.is_contiguous()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
