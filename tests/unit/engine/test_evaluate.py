"""Figures against counting by hand, with labels missing, ties of modes and teachers."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import connect, evaluate
from crossdistill.errors import InputError
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher
from samples.training import SmallNet, TensorLoader


class Table(nn.Module):
    """Logits by sample, given instead of images."""

    def forward(self, images):
        return Outputs(logits=images.flatten(1))


def batches_of(logits, target, size):
    parts = zip(logits.split(size), target.split(size), strict=True)
    return [Batch({"student": part[:, :, None, None]}, labels, labels) for part, labels in parts]


@pytest.fixture
def accelerator():
    return connect("cpu")


@pytest.mark.parametrize("num_classes", [3, 10])
def test_figures_are_those_of_counting_one_by_one(accelerator, num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(57, num_classes, generator=generator)
    target = torch.randint(-1, num_classes, (57,), generator=generator)
    found = evaluate(Table(), batches_of(logits, target, 10), accelerator=accelerator)
    first = fifth = count = 0
    loss, correct, total = 0.0, [0] * num_classes, [0] * num_classes
    for row, label in zip(logits, target.tolist(), strict=True):
        if label < 0:
            continue
        ranking = row.argsort(descending=True).tolist()
        first, fifth, count = first + (ranking[0] == label), fifth + (label in ranking[:5]), count + 1
        correct[label] += ranking[0] == label
        total[label] += 1
        loss -= row.log_softmax(0)[label].item()
    assert found["top1"] == first / count
    assert found.get("top5") == (fifth / count if num_classes > 5 else None)
    assert found["loss"] == pytest.approx(loss / count, rel=1e-6)
    assert found["num_samples"] == count
    assert (found["class_correct"], found["class_total"]) == (correct, total)


def test_the_size_of_batches_does_not_matter(accelerator):
    loader = TensorLoader()
    one = evaluate(SmallNet(), loader.evaluation(), accelerator=accelerator)
    each = [loader._batch(torch.tensor([i]), 0) for i in range(64)]
    other = evaluate(SmallNet(), each, accelerator=accelerator)
    assert other.pop("loss") == pytest.approx(one.pop("loss"))
    assert other == one


def test_each_module_gets_its_mode_back(accelerator):
    model = SmallNet(dropout=0.5, batch_norm=True).train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = TensorLoader()
    one, other = (evaluate(model, loader.evaluation(), accelerator=accelerator) for _ in range(2))
    assert one == other  # no dropout, no batch statistics
    assert [module.training for module in (model, model.dropout, model.norm)] == [True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_teachers_are_measured_on_their_own_view(accelerator):
    model = SmallNet(seed=4)
    loader = TensorLoader()
    blank = [
        replace(batch, images={**batch.images, "student": torch.zeros_like(batch.images["student"])})
        for batch in loader.evaluation()
    ]
    frozen = FrozenTeacher(model)
    expected = evaluate(model, loader.evaluation(), accelerator=accelerator)
    assert evaluate(frozen, blank, accelerator=accelerator) == expected
    twice = evaluate(EnsembleTeacher([frozen, frozen]), blank, accelerator=accelerator)
    assert twice["top1"] == expected["top1"]
    assert twice["loss"] == pytest.approx(expected["loss"])


def test_another_view_and_a_few_batches(accelerator):
    loader = TensorLoader()
    batch = loader.evaluation()[0]
    seen = evaluate(SmallNet(), loader.evaluation(), accelerator=accelerator, view="teacher0", max_batches=1)
    logits = SmallNet()(batch.images["teacher0"]).logits
    assert seen["num_samples"] == 20
    assert seen["loss"] == pytest.approx(F.cross_entropy(logits, batch.target).item())


def test_bfloat16_is_used_and_counted_in_full_precision():
    loader = TensorLoader()
    full = evaluate(SmallNet(), loader.evaluation(), accelerator=connect("cpu", "fp32"))
    half = evaluate(SmallNet(), loader.evaluation(), accelerator=connect("cpu", "bf16"))
    assert half["loss"] != full["loss"]
    assert half["loss"] == pytest.approx(full["loss"], rel=0.02)


@pytest.mark.parametrize("batches", [[], batches_of(torch.zeros(4, 3), torch.full((4,), -1), 2)])
def test_nothing_labelled_is_bad_input(accelerator, batches):
    with pytest.raises(InputError, match="no labelled image"):
        evaluate(Table(), batches, accelerator=accelerator)
