import pytest
import torch

from crossdistill.errors import InputError
from crossdistill.store import Keep, StoreWriter, verify
from crossdistill.store.shard import shard_path, write_shard
from samples.answers import fill, make_answers, make_manifest


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_whole_store_is_sound_and_counted(tmp_path, top_k):
    manifest = make_manifest(keep=Keep(top_k, embeddings=True), dims=(4,))
    fill(tmp_path, manifest, epochs=2)
    steps = []
    found = verify(tmp_path, lambda done, total: steps.append((done, total)))
    assert found.sound
    assert (found.num_epochs, found.num_shards, found.num_rows) == (2, 6, 40)
    assert found.num_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert steps == [(done, 6) for done in range(1, 7)]


def test_a_store_that_was_only_begun_is_sound_and_empty(tmp_path):
    fill(tmp_path, make_manifest(), epochs=0)
    found = verify(tmp_path)
    assert found.sound
    assert (found.num_epochs, found.num_shards, found.num_rows, found.num_bytes) == (0, 0, 0, 0)


def test_missing_and_damaged_shards_are_listed(tmp_path):
    fill(tmp_path, make_manifest(), epochs=4)
    shard_path(tmp_path, 1, 0).unlink()
    for path in (tmp_path / "epoch-0002").iterdir():
        path.unlink()
    (tmp_path / "epoch-0002").rmdir()
    altered = shard_path(tmp_path, 3, 1)
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    short = shard_path(tmp_path, 3, 2)
    short.write_bytes(short.read_bytes()[:-3])
    found = verify(tmp_path)
    assert not found.sound
    assert found.num_epochs == 1
    assert found.missing == ((1, 0), (2, 0), (2, 1), (2, 2))
    assert set(found.damaged) == {(3, 1), (3, 2)}
    assert "is not what was written" in found.damaged[3, 1]
    assert "it cannot be read" in found.damaged[3, 2]
    assert found.num_shards == 12 - 6
    for path in (altered, short):
        path.unlink()
    fill(tmp_path, make_manifest(), epochs=4)
    assert verify(tmp_path).sound


def rows_of(manifest, **changes):
    samples, _, _ = make_answers(manifest, 0, 0)
    rows = {
        "id": samples[:, 0].to(torch.uint32),
        "occurrence": samples[:, 1].to(torch.uint16),
        "shift": torch.zeros(8),
        "values": torch.zeros(8, 2).half(),
        "classes": torch.tensor([[1, 9]] * 8).to(torch.uint8),
        "rest": torch.zeros(8).half(),
    }
    return rows | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shift": torch.tensor([0, float("nan")] * 4)}, "its shift has values that are not finite"),
        ({"rest": torch.full((8,), float("-inf")).half()}, "its rest has values that are not finite"),
        ({"classes": torch.tensor([[1, 10]] * 8).to(torch.uint8)}, "different classes out of 10"),
        ({"classes": torch.tensor([[3, 3]] * 8).to(torch.uint8)}, "different classes out of 10"),
        ({"id": torch.tensor([5, 1, 2, 3, 4, 5, 6, 7]).to(torch.uint32)}, "1 of its samples came before"),
    ],
)
def test_rows_that_make_no_sense_are_noticed_though_their_hashes_are_right(tmp_path, changes, words):
    manifest = make_manifest(num_samples=8, keep=Keep(2))
    StoreWriter.open(tmp_path, manifest)
    (tmp_path / "epoch-0000").mkdir()
    write_shard(tmp_path, manifest, 0, 0, rows_of(manifest))
    assert verify(tmp_path).sound
    write_shard(tmp_path, manifest, 0, 0, rows_of(manifest, **changes))
    assert words in verify(tmp_path).damaged[0, 0]


@pytest.mark.parametrize("other", [0, 1])
def test_a_sample_in_two_shards_of_an_epoch_is_noticed(tmp_path, other):
    manifest = make_manifest()
    writer = fill(tmp_path, manifest, epochs=2)
    samples, logits, _ = make_answers(manifest, 1, 2)
    samples[0, 0] = make_answers(manifest, 1, other)[0][3, 0]
    writer.write(1, 2, samples, logits)
    assert verify(tmp_path).damaged == {(1, 2): "1 of its samples came before in this epoch"}
    samples[0, 1] = 1  # the second time in the epoch is another sample
    writer.write(1, 2, samples, logits)
    assert verify(tmp_path).sound


def test_what_is_no_store_cannot_be_verified(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        verify(tmp_path)
