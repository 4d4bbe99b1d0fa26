import json
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.store import Keep, Store, StoreWriter, read
from crossdistill.store import manifest as manifests
from crossdistill.store.codec import Answers, encode
from crossdistill.store.shard import check_header, shard_path
from samples.answers import expected, fill, make_answers, make_manifest


def same(answers, manifest, logits, embeddings=()):
    """Whether the answers are bit for bit what encoding and decoding these gives."""
    wanted = Answers(encode(logits, embeddings, manifest.keep), manifest.num_classes)
    return torch.equal(answers.logits(), wanted.logits()) and all(
        torch.equal(one, other) for one, other in zip(answers.embeddings(), wanted.embeddings(), strict=True)
    )


@pytest.mark.parametrize("num_classes", [3, 256, 257, 21_000, 65_536, 65_537])
@pytest.mark.parametrize("top_k", [None, 2])
def test_what_was_written_is_read(tmp_path, num_classes, top_k):
    manifest = make_manifest(num_classes=num_classes, keep=Keep(top_k, embeddings=True), dims=(5, 2))
    fill(tmp_path, manifest)
    samples, logits, embeddings = expected(manifest, 0)
    answers = Store.open(tmp_path).read(0, samples)
    assert same(answers, manifest, logits, embeddings)
    assert len(answers) == 20


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    manifest = make_manifest(num_samples=50, keep=Keep(3, embeddings=True), dims=(4,))
    path = tmp_path_factory.mktemp("filled")
    fill(path, manifest, epochs=4)
    return Store.open(path), [expected(manifest, epoch) for epoch in range(4)]


@settings(deadline=None)
@given(epoch=st.integers(0, 3), at=st.lists(st.integers(0, 49), max_size=80))
def test_any_samples_in_any_order_are_found(filled, epoch, at):
    store, epochs = filled
    samples, logits, (embedding,) = epochs[epoch]
    assert same(store.read(epoch, samples[at]), store.manifest, logits[at], [embedding[at]])


def test_a_sample_that_comes_again_has_an_answer_for_each_time(tmp_path):
    manifest = make_manifest(num_samples=6, shard_size=4)
    samples = torch.tensor([[5, 0], [7, 0], [5, 1], [5, 65_535], [2**32 - 1, 0], [0, 3]])
    logits = torch.randn(6, 10)
    writer = StoreWriter.open(tmp_path, manifest)
    writer.write(0, 0, samples[:4], logits[:4])
    writer.write(0, 1, samples[4:], logits[4:])
    store = Store.open(tmp_path)
    at = [3, 0, 5, 2, 4, 1]
    assert same(store.read(0, samples[at]), manifest, logits[at])
    assert store.ids(0).tolist() == [0, 5, 7, 2**32 - 1]
    assert store.ids(0).dtype == np.int64


@pytest.mark.parametrize("sample", [[50, 0], [3, 1], [-1, 0], [2, 65_536], [4, -65_536], [2**47, 0]])
def test_a_sample_without_an_answer_is_refused(filled, sample):
    store, _ = filled
    samples = torch.tensor([[1, 0], sample, [2, 0]])
    with pytest.raises(InputError, match="1 of 3 samples that have no answer in epoch 2") as error:
        store.read(2, samples)
    assert f"id {sample[0]}, occurrence {sample[1]}" in error.value.given


def test_a_store_of_no_readable_image_answers_nothing(tmp_path):
    manifest = make_manifest(num_samples=2)
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    StoreWriter.open(tmp_path, manifest).write(0, 0, nothing, torch.zeros(0, 10))
    store = Store.open(tmp_path)
    assert store.num_epochs() == 1
    assert len(store.ids(0)) == 0
    assert store.read(0, nothing).logits().shape == (0, 10)
    with pytest.raises(InputError, match="have no answer"):
        store.read(0, torch.tensor([[0, 0]]))


def test_an_epoch_that_is_not_stored_is_refused(filled):
    store, _ = filled
    with pytest.raises(InputError, match="which has no such epoch") as error:
        store.read(4, torch.tensor([[0, 0]]))
    assert "0, 1, 2, 3" in error.value.expected
    assert "data.cycle_epochs" in error.value.action


def test_completeness_is_that_of_the_first_epochs(tmp_path):
    manifest = make_manifest()
    fill(tmp_path, manifest, epochs=3)
    store = Store.open(tmp_path)
    store.check_complete(3)
    with pytest.raises(InputError, match=r"5 epochs from .* holds 3 whole \(epoch 3: nothing; epoch 4: nothing\)") as e:
        store.check_complete(5)
    assert "--epochs 5" in e.value.action
    assert "data.cycle_epochs=3" in e.value.action
    shard_path(tmp_path, 1, 2).unlink()
    store.check_complete(1)
    assert store.num_epochs() == 1
    with pytest.raises(InputError, match=r"holds 1 whole \(epoch 1 shard 2: it is missing\)"):
        store.check_complete(3)
    shutil.rmtree(tmp_path / "epoch-0000")
    assert store.num_epochs() == 0
    with pytest.raises(InputError, match="epoch 0: nothing") as error:
        store.check_complete(1)
    assert "cycle_epochs" not in error.value.action


def test_epochs_appended_later_are_seen_by_an_open_store(tmp_path):
    manifest = make_manifest()
    fill(tmp_path, manifest, epochs=1)
    store = Store.open(tmp_path)
    with pytest.raises(InputError):
        store.ids(1)
    fill(tmp_path, manifest, epochs=2)
    assert store.num_epochs() == 2
    assert len(store.ids(1)) == 20


def test_sections_of_the_identity_are_compared_and_the_difference_shown(tmp_path):
    fill(tmp_path, make_manifest(), epochs=0)
    store = Store.open(tmp_path)
    store.check_same({})
    store.check_same({"teacher": {"weights": "ab12"}})
    store.check_same({"images": {"sizes": (32, 32), "seed": 0}})
    with pytest.raises(InputError) as error:
        store.check_same({"images": {"seed": 1, "sizes": [32, 32]}, "order": {"batch_size": 8}})
    assert "images.seed: stored 0, now 1; order.batch_size: stored 'unset', now 8" in error.value.given


def test_what_names_a_store_is_computed_once_however_many_headers_are_compared_with_it(tmp_path, monkeypatch):
    hashed, before = [], manifests._hash
    manifest = make_manifest(num_samples=40, shard_size=2)
    fill(tmp_path, manifest, epochs=2)
    monkeypatch.setattr(manifests, "_hash", lambda tree: (hashed.append(tree), before(tree))[1])
    store = Store.open(tmp_path)
    assert len(hashed) == 1  # the manifest's own
    assert store.rows(2) == [[2] * 20] * 2
    store.check_complete(2)
    assert StoreWriter(tmp_path, store.manifest).missing(2) == []
    assert len(hashed) == 2  # and the one that every header carries
    assert store.fingerprint() == manifest.fingerprint()


def test_the_answers_of_each_shard_are_counted_up_to_the_first_epoch_that_is_not_whole(tmp_path, monkeypatch):
    manifest, looked = make_manifest(), []
    writer = fill(tmp_path, manifest, epochs=4)
    samples, logits, _ = make_answers(manifest, 1, 1)
    writer.write(1, 1, samples[:5], logits[:5])
    shard_path(tmp_path, 2, 0).unlink()
    monkeypatch.setattr(read, "check_header", lambda *at: (looked.append(at[2:]), check_header(*at))[1])
    store = Store.open(tmp_path)
    assert store.rows(4) == [[8, 8, 4], [8, 5, 4]]
    assert looked == [(epoch, shard) for epoch in range(3) for shard in range(3)]
    assert store.rows(1) == [[8, 8, 4]]
    assert store.num_epochs() == 2
    assert store.num_epochs(3) == 4


def test_without_embeddings_nothing_of_them_is_read(tmp_path):
    manifest = make_manifest(dims=(5, 2))
    fill(tmp_path, manifest)
    samples, _, embeddings = expected(manifest, 0)
    store = Store.open(tmp_path)
    answers = store.read(0, samples, embeddings=False)
    assert answers.embeddings() == ()
    assert set(answers.rows) == {"shift", "logits"}
    assert torch.equal(answers.logits(), store.read(0, samples).logits())
    path = shard_path(tmp_path, 0, 0)
    content = bytearray(path.read_bytes())
    at = content.find(embeddings[1][:8].half().numpy().tobytes())
    assert at > 0
    flip(path, at)
    assert torch.equal(Store.open(tmp_path).read(0, samples, embeddings=False).logits(), answers.logits())
    with pytest.raises(InputError, match="its embedding1 is not what was written") as error:
        Store.open(tmp_path).read(0, samples)
    assert f"`crossdistill store --verify {tmp_path} --remove-damaged`" in error.value.action


def test_what_the_manifest_does_not_say_is_refused(tmp_path):
    fill(tmp_path, make_manifest(), epochs=0)
    store = Store.open(tmp_path)
    assert store.fact("its seed", lambda manifest: manifest.identity["images"]["seed"]) == 0
    with pytest.raises(InputError, match=r"does not describe its teacher \(KeyError: 'teacher'\)"):
        store.fact("its teacher", lambda manifest: manifest.facts["teacher"])
    with pytest.raises(InputError, match="does not describe its size"):
        store.fact("its size", lambda manifest: manifest.facts["spec"]["name"]["size"])


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def read_all(store, epoch=0):
    return store.read(epoch, expected(store.manifest, epoch)[0])


def test_any_flipped_byte_of_a_shard_is_noticed(tmp_path):
    """Of its header, too, except where that changes nothing that is read."""
    manifest = make_manifest(num_samples=3, num_classes=2, keep=Keep(1, embeddings=True), dims=(1,))
    fill(tmp_path, manifest)
    path = shard_path(tmp_path, 0, 0)
    whole = path.read_bytes()
    answers = read_all(Store.open(tmp_path))
    start = 8 + int.from_bytes(whole[:8], "little")
    unnoticed, refusals = [], set()
    for at in [*range(0, start, 5), *range(start, len(whole), 3)]:
        path.write_bytes(whole)
        flip(path, at)
        try:
            again = read_all(Store.open(tmp_path))
        except InputError as error:
            refusals.add(error.given.partition(": ")[0])
        else:
            assert all(torch.equal(again.rows[name], answers.rows[name]) for name in answers.rows)
            unnoticed.append(at)
    assert len(unnoticed) <= 3
    assert all(at < start for at in unnoticed)
    assert refusals == {f"store {tmp_path}, whose shard 0 of epoch 0 cannot be used"}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "it cannot be read"),
        (lambda path: path.write_bytes(b""), "it cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "it cannot be read"),
        (lambda path: path.unlink(), "it is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "it cannot be read"),
        (lambda path: shutil.copy(path.parents[1] / "epoch-0001" / path.name, path), "it is epoch 1"),
        (lambda path: shutil.copy(path.with_name("shard-00000.safetensors"), path), "it is shard 0"),
    ],
)
def test_a_shard_that_is_not_the_one_that_was_written_is_refused(tmp_path, harm, words):
    fill(tmp_path, make_manifest(), epochs=2)
    harm(shard_path(tmp_path, 0, 1))
    store = Store.open(tmp_path)
    assert store.num_epochs() == 0
    with pytest.raises(InputError, match=f"epoch 0 shard 1: {words}"):
        store.check_complete(1)
    with pytest.raises(InputError, match=f"shard 1 of epoch 0 cannot be used: {words}") as error:
        read_all(store)
    assert "--verify" in error.value.action
    assert read_all(store, 1).logits().shape == (20, 10)


def test_two_epochs_that_changed_places_are_refused(tmp_path):
    fill(tmp_path, make_manifest(), epochs=2)
    one, other = shard_path(tmp_path, 0, 1), shard_path(tmp_path, 1, 1)
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(InputError, match="epoch 0 shard 1: it is epoch 1; epoch 1 shard 1: it is epoch 0"):
        Store.open(tmp_path).check_complete(2)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"teacher": "another"}},
        {"num_classes": 11},
        {"keep": Keep(3)},
        {"keep": Keep(embeddings=True), "dims": (3,)},
    ],
)
def test_a_shard_of_another_store_is_refused(tmp_path, change):
    fill(tmp_path / "a", make_manifest())
    fill(tmp_path / "b", make_manifest(**change))
    shutil.copy(shard_path(tmp_path / "b", 0, 1), shard_path(tmp_path / "a", 0, 1))
    with pytest.raises(InputError, match="epoch 0 shard 1: it is of another store"):
        Store.open(tmp_path / "a").check_complete(1)


@pytest.mark.parametrize(
    ("tensors", "labels", "words"),
    [
        ({"logits": None}, {}, "it holds id, occurrence, shift instead of"),
        ({"logits": torch.zeros(8, 9).half()}, {}, "its logits is F16"),
        ({"logits": torch.zeros(8, 10)}, {}, "its logits is F32"),
        ({"shift": torch.zeros(7)}, {}, "its shift is F32"),
        ({"id": torch.tensor(3).to(torch.uint32)}, {}, "it holds -1 rows"),
        ({"id": torch.zeros(9).to(torch.uint32)}, {}, "it holds 9 rows for 8 positions"),
        ({}, {"hashes": "{}"}, "its hashes are of other tensors"),
        ({}, {"hashes": "["}, "it has no hashes"),
        ({}, {"epoch": "1"}, "it is epoch 1"),
    ],
)
def test_a_shard_of_another_make_is_refused(tmp_path, tensors, labels, words):
    from safetensors import safe_open
    from safetensors.torch import save_file

    fill(tmp_path, make_manifest())
    path = shard_path(tmp_path, 0, 1)
    with safe_open(path, "pt") as file:
        whole, metadata = {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118
    made = {name: tensor for name, tensor in {**whole, **tensors}.items() if tensor is not None}
    save_file(made, path, metadata={**metadata, **labels})
    with pytest.raises(InputError, match=f"epoch 0 shard 1: {words}"):
        Store.open(tmp_path).check_complete(1)


def test_a_shard_is_hashed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    manifest = make_manifest()
    fill(tmp_path, manifest)
    monkeypatch.setattr(read, "MOST_SHARDS", 1)
    store = Store.open(tmp_path)
    hashed = []
    monkeypatch.setattr(
        "crossdistill.store.shard._sha256",
        lambda array, count=hashed.append, sha=read.Shard.check.__globals__["_sha256"]: (count(len(array)), sha(array))[
            1
        ],
    )
    read_all(store)
    num_first = len(hashed)
    assert num_first == 3 * 2 + 3 * 4  # ids and occurrences for the table, then everything
    read_all(store)
    assert len(hashed) == num_first
    flip(shard_path(tmp_path, 0, 2), -1)
    samples = make_answers(manifest, 0, 2)[0]
    store.read(0, make_answers(manifest, 0, 0)[0])  # drops the mapped one
    with pytest.raises(InputError, match=r"its .* is not what was written"):
        store.read(0, samples)


def test_a_shard_written_again_with_other_samples_is_noticed(tmp_path):
    manifest = make_manifest()
    writer = fill(tmp_path, manifest)
    store = Store.open(tmp_path)
    assert len(store.ids(0)) == 20
    samples, logits, _ = make_answers(manifest, 0, 1)
    writer.write(0, 1, samples.flip(0), logits.flip(0))
    with pytest.raises(InputError, match="shard 1 of epoch 0 cannot be used: it was written again"):
        read_all(store)
    assert same(read_all(Store.open(tmp_path)), manifest, expected(manifest, 0)[1])


def test_reading_a_large_store_keeps_no_file_open_and_few_mapped(tmp_path):
    manifest = make_manifest(num_samples=300, shard_size=2)
    fill(tmp_path, manifest)
    store = Store.open(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    samples, logits, _ = expected(manifest, 0)
    assert same(store.read(0, samples), manifest, logits)
    for start in range(0, 300, 10):
        store.read(0, samples[start : start + 10])
    assert len(os.listdir("/proc/self/fd")) <= before
    with open("/proc/self/maps") as maps:
        mapped = {line.split()[-1] for line in maps if str(tmp_path) in line}
    assert 1 <= len(mapped) <= read.MOST_SHARDS


def test_reading_cannot_change_what_is_stored(tmp_path):
    fill(tmp_path, make_manifest())
    before = shard_path(tmp_path, 0, 0).read_bytes()
    answers = read_all(Store.open(tmp_path))
    for row in answers.rows.values():
        row.zero_()
    assert read_all(Store.open(tmp_path)).logits().abs().sum() > 0
    assert shard_path(tmp_path, 0, 0).read_bytes() == before


def check_many(store, epochs, seed):
    draw = np.random.default_rng(seed)
    for _ in range(20):
        epoch, at = int(draw.integers(4)), draw.integers(0, 50, 17)
        samples, logits, (embedding,) = epochs[epoch]
        if not same(store.read(epoch, samples[at]), store.manifest, logits[at], [embedding[at]]):
            return False
    return True


def test_threads_read_at_once(filled, monkeypatch):
    store, epochs = filled
    monkeypatch.setattr(read, "MOST_SHARDS", 2)  # so that they drop one another's
    fresh = Store.open(store.path)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: check_many(fresh, epochs, seed), range(16)))


def check_in_a_process(store, epochs, seed):
    os._exit(0 if check_many(store, epochs, seed) else 1)


def test_forked_processes_read_at_once_what_their_parent_had_open(filled):
    store, epochs = filled
    assert check_many(store, epochs, 0)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=check_in_a_process, args=(store, epochs, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    assert check_many(store, epochs, 4)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_a_store_travels_to_other_processes(filled):
    store, epochs = filled
    copy = pickle.loads(pickle.dumps(store))
    assert copy.manifest == store.manifest
    assert check_many(copy, epochs, 0)


def test_more_names_beside_the_shards_do_no_harm(tmp_path):
    fill(tmp_path, make_manifest())
    (tmp_path / "README.md").write_text("ours")
    (tmp_path / "epoch-0000" / "notes").write_text("ours")
    (tmp_path / "epoch-last").mkdir()
    assert Store.open(tmp_path).num_epochs() == 1
    assert json.loads((tmp_path / "manifest.json").read_text())["kind"] == "crossdistill-store"
