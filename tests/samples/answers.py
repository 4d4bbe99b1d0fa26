"""Small stores of random answers, the same at every call, for tests of what writes and reads them."""

import torch

from crossdistill.store import Keep, Manifest, StoreWriter

IDENTITY = {"teacher": {"weights": "ab12"}, "images": {"seed": 0, "sizes": [32, 32]}}


def make_manifest(*, num_classes=10, num_samples=20, shard_size=8, keep=None, dims=(), identity=None, facts=None):
    return Manifest(
        identity=IDENTITY if identity is None else identity,
        facts={"spec": {"name": "net"}} if facts is None else facts,
        num_classes=num_classes,
        num_samples=num_samples,
        shard_size=shard_size,
        keep=Keep(embeddings=bool(dims)) if keep is None else keep,
        embedding_dims=dims,
    )


def make_answers(manifest, epoch, shard):
    """Samples, logits and embeddings of one shard, another order of ids in each epoch; the same at every call."""
    order = torch.randperm(manifest.num_samples, generator=torch.Generator().manual_seed(epoch))
    positions = manifest.positions(shard)
    ids = order[positions.start : positions.stop]
    draw = torch.Generator().manual_seed(1000 * epoch + shard)
    logits = 4 * torch.randn(len(ids), manifest.num_classes, generator=draw)
    embeddings = [torch.randn(len(ids), dim, generator=draw) for dim in manifest.embedding_dims]
    return torch.stack([ids, torch.zeros_like(ids)], dim=1), logits, embeddings


def fill(path, manifest, *, epochs=1):
    writer = StoreWriter.open(path, manifest)
    for epoch, shard in writer.missing(epochs):
        writer.write(epoch, shard, *make_answers(manifest, epoch, shard))
    return writer


def expected(manifest, epoch):
    """All samples, logits and embeddings of one epoch, in its order."""
    parts = [make_answers(manifest, epoch, shard) for shard in range(manifest.num_shards)]
    embeddings = [torch.cat([part[2][at] for part in parts]) for at in range(len(manifest.embedding_dims))]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), embeddings
