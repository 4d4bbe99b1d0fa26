"""Embeddings of a pass: order, modes, unlabelled images, and what is not finite."""

import numpy as np
import pytest
import torch

from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import connect
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.selfsup.features import extract
from crossdistill.selfsup.recalibrate import batch_norms, mixed_batches, recalibrate


def batches(num_images=10, size=4):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, 32, 32, generator=generator)
    order = torch.randperm(num_images, generator=generator)
    for rows in order.split(size):
        yield Batch({"student": images[rows]}, rows % 3 - 1, rows)


def test_images_come_in_the_order_of_their_ids_and_modes_stay():
    model = build("timm/test_resnet", num_classes=3, image_size=32).train()
    found = extract(model, batches(), connect("cpu"))
    assert model.training
    assert found.sample_ids.tolist() == list(range(10))
    assert found.targets.tolist() == [index % 3 - 1 for index in range(10)]
    images = torch.cat([batch.images["student"] for batch in batches()])
    ids = torch.cat([batch.sample_id for batch in batches()])
    with torch.no_grad():
        expected = model.eval()(images[ids.argsort()]).require("embedding")
    torch.testing.assert_close(found.embeddings, expected)
    assert (found.labelled().targets >= 0).all()
    assert len(found.labelled()) == 6


def test_another_view_and_mirror_images():
    model = build("timm/test_resnet", num_classes=3, image_size=32)
    accelerator = connect("cpu")
    plain = extract(model, batches(), accelerator)
    twice = (Batch({"teacher0": one.images["student"].flip(-1)}, one.target, one.sample_id) for one in batches())
    again = extract(model, twice, accelerator, view="teacher0", flip=True)
    torch.testing.assert_close(again.embeddings, plain.embeddings)
    mirrored = extract(model, batches(), accelerator, flip=True)
    assert not torch.allclose(mirrored.embeddings, plain.embeddings, atol=1e-4)
    assert torch.equal(mirrored.sample_ids, plain.sample_ids)


def test_embeddings_that_are_not_finite_are_refused():
    def broken(images):
        return Outputs(embedding=torch.full((len(images), 2), torch.nan))

    network = torch.nn.Module()
    network.forward = broken
    with pytest.raises(InputError, match="embeddings of 10 of 10 images are not finite"):
        extract(network, batches(), connect("cpu"))
    with pytest.raises(InputError, match="no image"):
        extract(network, iter(()), connect("cpu"))


def test_recalibration_takes_the_mean_over_batches_and_leaves_weights():
    model = build("timm/test_resnet", num_classes=3, image_size=32).train()
    before = {name: value.clone() for name, value in model.named_parameters()}
    assert recalibrate(model, batches(12, 6), connect("cpu"))
    first = batch_norms(model)[0]
    stem = [batch.images["student"] for batch in batches(12, 6)]
    inputs: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        for images in stem:
            model.eval()(images)
    handle.remove()
    torch.testing.assert_close(first.running_mean, torch.stack([one.mean((0, 2, 3)) for one in inputs]).mean(0))
    assert first.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


class Sorted:
    """Images of ten classes, one after the other, that differ in brightness alone."""

    name, class_names, mirror_safe, num_channels, image_size = "sorted", tuple("abcdefghij"), True, 3, (32, 32)
    targets = np.arange(200) // 20

    def read(self, index):
        return torch.full((3, 32, 32), 25 * (index // 20), dtype=torch.uint8)

    def describe(self, index):
        return str(index)


def test_batches_of_whole_images_are_mixed_and_of_one_size():
    view = build("timm/test_resnet", num_classes=3, image_size=32).spec.input
    made = list(mixed_batches(Sorted(), np.arange(200), view, batch_size=48))
    assert [len(batch) for batch in made] == [48] * 4
    assert all(len(set((batch.sample_id // 20).tolist())) > 5 for batch in made)
    ids = torch.cat([batch.sample_id for batch in made]).tolist()
    assert len(set(ids)) == len(ids)
    assert [len(batch) for batch in mixed_batches(Sorted(), np.arange(5), view, batch_size=48)] == [5]
    assert not list(mixed_batches(Sorted(), np.arange(0), view, batch_size=48))


def test_the_spread_between_classes_is_part_of_recalibrated_statistics():
    model = build("timm/test_resnet", num_classes=3, image_size=32)
    first = batch_norms(model)[0]
    view = model.spec.input
    assert recalibrate(model, mixed_batches(Sorted(), np.arange(200), view, batch_size=50), connect("cpu"))
    inputs: list[torch.Tensor] = []
    first.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        (everything,) = mixed_batches(Sorted(), np.arange(200), view, batch_size=200)
        model.eval()(everything.images["student"])
    # Four random batches of fifty: the mean of their variances is the whole one less what their means differ by.
    torch.testing.assert_close(first.running_var, inputs[0].var((0, 2, 3)), rtol=0.15, atol=1e-3)


def test_statistics_stay_where_no_batch_has_a_spread():
    model = build("timm/test_resnet", num_classes=3, image_size=32)
    with torch.no_grad():
        batch_norms(model)[0].running_mean.fill_(7)
    assert not recalibrate(model, batches(3, 1), connect("cpu"))
    assert (batch_norms(model)[0].running_mean == 7).all()


def test_there_is_nothing_to_recalibrate_without_batch_norm():
    assert not recalibrate(build("timm/test_vit", num_classes=3, image_size=32), batches(), connect("cpu"))
