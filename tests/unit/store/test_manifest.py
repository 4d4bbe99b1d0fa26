import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossdistill.errors import InputError
from crossdistill.store import Keep, Manifest, Store, is_store
from crossdistill.store.manifest import class_dtype, load
from crossdistill.store.shard import shard_path
from oracles import store as oracle
from samples.answers import fill, make_manifest


@given(num_samples=st.integers(1, 500), shard_size=st.integers(1, 600))
def test_shards_share_out_the_positions_of_an_epoch_in_order(num_samples, shard_size):
    manifest = make_manifest(num_samples=num_samples, shard_size=shard_size)
    runs = [manifest.positions(shard) for shard in range(manifest.num_shards)]
    assert [position for run in runs for position in run] == list(range(num_samples))
    assert all(len(run) == shard_size for run in runs[:-1])
    assert 1 <= len(runs[-1]) <= shard_size


@pytest.mark.parametrize("shard", [-1, 3])
def test_a_shard_that_an_epoch_does_not_have_is_refused(shard):
    with pytest.raises(InputError, match="one of the 3 shards"):
        make_manifest().positions(shard)


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(10, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16"), (65_537, "int32"), (21_000, "uint16")],
)
def test_classes_are_numbered_by_the_smallest_type_that_can(num_classes, dtype):
    assert class_dtype(num_classes) == dtype


@pytest.mark.parametrize(
    ("num_classes", "top_k", "dims"),
    [
        (10, None, ()),
        (10, 3, (7,)),
        (10, 10, ()),
        (256, 5, ()),
        (257, 5, (4, 9)),
        (1000, None, (512,)),
        (1000, 10, ()),
        (21_000, 10, ()),
        (65_536, 2, ()),
        (65_537, 2, ()),
    ],
)
def test_bytes_per_sample_are_those_of_the_files(tmp_path, num_classes, top_k, dims):
    manifest = make_manifest(num_classes=num_classes, keep=Keep(top_k, embeddings=bool(dims)), dims=dims)
    fill(tmp_path / "store", manifest)
    assert manifest.bytes_per_sample() == oracle.bytes_per_sample(num_classes, top_k, dims)
    for shard in range(manifest.num_shards):
        content = shard_path(tmp_path / "store", 0, shard).read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        assert len(content) - header == manifest.bytes_per_sample() * len(manifest.positions(shard))
        assert header < 2048


def test_keeping_all_classes_or_more_is_keeping_all_logits():
    full = make_manifest(keep=Keep())
    for top_k in (10, 11, 1000):
        assert make_manifest(keep=Keep(top_k)) == full
    assert make_manifest(keep=Keep(9)).keep.top_k == 9


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    manifest = make_manifest(keep=Keep(3, embeddings=True), dims=(4, 5), facts={"top1": 0.9, "names": ["a", "é"]})
    fill(tmp_path / "store", manifest, epochs=0)
    assert load(tmp_path / "store") == manifest
    assert Store.open(tmp_path / "store").fingerprint() == manifest.fingerprint()


def test_the_fingerprint_is_that_of_all_but_the_facts():
    manifest = make_manifest()
    assert replace(manifest, facts={"top1": 0.5}).fingerprint() == manifest.fingerprint()
    turned = dict(reversed(list(manifest.identity.items())))
    assert replace(manifest, identity=turned).fingerprint() == manifest.fingerprint()
    others = [
        replace(manifest, identity={"teacher": {"weights": "cd34"}}),
        replace(manifest, num_classes=11),
        replace(manifest, num_samples=21),
        replace(manifest, shard_size=9),
        replace(manifest, keep=Keep(3)),
        replace(manifest, keep=Keep(embeddings=True), embedding_dims=(3,)),
    ]
    assert len({one.fingerprint() for one in [manifest, *others]}) == 7


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 0}, "num_classes 0"),
        ({"num_samples": 0}, "num_samples 0"),
        ({"shard_size": -1}, "shard_size -1"),
        ({"keep": Keep(0)}, "top_k 0"),
        ({"keep": Keep(embeddings=True)}, "embeddings kept and embedding sizes"),
        ({"embedding_dims": (3,)}, "embeddings not kept"),
        ({"keep": Keep(embeddings=True), "embedding_dims": (3, 0)}, r"embedding sizes \(3, 0\)"),
        ({"identity": {"a": float("nan")}}, "identity that JSON cannot hold"),
        ({"facts": {"a": object()}}, "facts that JSON cannot hold"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        replace(make_manifest(), **changes)


def signed(body):
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps(body | {"sha256": digest})


def without_a_key(text):
    body = json.loads(text)
    return signed({key: value for key, value in body.items() if key not in ("sha256", "num_classes")})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda text: text[:-40], "damaged: no JSON"),
        (lambda text: "", "damaged: no JSON"),
        (lambda text: "\udcff", "damaged: no JSON"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "damaged: its content does not match its hash"),
        (lambda text: text.replace('"sha256"', '"sha255"'), "does not match its hash"),
        (without_a_key, "damaged: KeyError: 'num_classes'"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 99}), "of schema 99"),
        (lambda text: json.dumps(json.loads(text) | {"kind": "checkpoint"}), "is no store's"),
        (lambda text: "[1]", "is no store's"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(tmp_path, harm, words):
    fill(tmp_path / "store", make_manifest())
    file = tmp_path / "store" / "manifest.json"
    file.write_bytes(harm(file.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=words) as error:
        Store.open(tmp_path / "store")
    assert str(tmp_path / "store") in error.value.given


def test_a_folder_is_a_store_if_its_manifest_says_so(tmp_path):
    fill(tmp_path / "store", make_manifest(), epochs=0)
    assert is_store(tmp_path / "store")
    assert not is_store(tmp_path)
    assert not is_store(tmp_path / "nothing")
    assert not is_store(tmp_path / "store" / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"schema": 1, "step": 3}')  # as a checkpoint's
    assert not is_store(tmp_path)


def test_a_store_whose_manifest_is_damaged_is_still_one(tmp_path):
    fill(tmp_path / "store", make_manifest())
    (tmp_path / "store" / "manifest.json").write_text("{")
    assert is_store(tmp_path / "store")


def test_no_store_at_all_is_refused_by_its_path(tmp_path):
    with pytest.raises(InputError, match=r"nothing.*cannot be read"):
        Store.open(tmp_path / "nothing")


def test_sizes_may_be_numpys():
    numpy = pytest.importorskip("numpy")
    manifest = Manifest({}, {}, numpy.int64(3), numpy.int32(4), numpy.int64(2), Keep(), ())
    assert json.loads(manifest.to_json())["num_classes"] == 3
