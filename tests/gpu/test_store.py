"""Stored answers encoded and decoded on a GPU."""

import pytest
import torch

from crossdistill.store import Keep, Store, StoreWriter
from samples.answers import expected, fill, make_answers, make_manifest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("num_classes", [10, 300, 70_000])
@pytest.mark.parametrize("top_k", [None, 3])
def test_answers_are_decoded_on_the_device_as_on_the_host_without_waiting(tmp_path, num_classes, top_k):
    manifest = make_manifest(num_classes=num_classes, keep=Keep(top_k, embeddings=True), dims=(4,))
    fill(tmp_path, manifest)
    samples = expected(manifest, 0)[0]
    answers = Store.open(tmp_path).read(0, samples)
    answers.to("cuda").logits()  # what is made once, such as pinned memory, is made now
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = answers.to("cuda")
        logits, (embedding,) = moved.logits(), moved.embeddings()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(logits.cpu(), answers.logits(), rtol=1e-6, atol=1e-5)
    assert torch.equal(embedding.cpu(), answers.embeddings()[0])


@pytest.mark.parametrize("num_classes", [10, 300, 70_000])
@pytest.mark.parametrize("top_k", [None, 3])
def test_answers_may_come_from_a_device(tmp_path, num_classes, top_k):
    manifest = make_manifest(num_classes=num_classes, keep=Keep(top_k, embeddings=True), dims=(4,))
    for name, device in (("host", "cpu"), ("device", "cuda")):
        writer = StoreWriter.open(tmp_path / name, manifest)
        for epoch, shard in writer.missing(1):
            samples, logits, embeddings = make_answers(manifest, epoch, shard)
            writer.write(epoch, shard, samples, logits.to(device), [one.to(device) for one in embeddings])
    samples = expected(manifest, 0)[0]
    host, device = (Store.open(tmp_path / name).read(0, samples) for name in ("host", "device"))
    torch.testing.assert_close(device.logits(), host.logits(), rtol=2**-10, atol=2**-10)
    assert torch.equal(device.embeddings()[0], host.embeddings()[0])
