"""Embeddings of a pass: order, modes, unlabelled images, and what is not finite."""

import pytest
import torch

from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import connect
from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.selfsup.features import extract
from crossdistill.selfsup.recalibrate import batch_norms, recalibrate


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


def test_there_is_nothing_to_recalibrate_without_batch_norm():
    assert not recalibrate(build("timm/test_vit", num_classes=3, image_size=32), batches(), connect("cpu"))
