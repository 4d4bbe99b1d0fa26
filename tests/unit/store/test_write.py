import errno
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace

import pytest
import torch

from crossdistill.errors import InputError
from crossdistill.store import Keep, Store, StoreWriter, check_folder, verify
from crossdistill.store import partial as partials
from crossdistill.store.partial import partial_path
from crossdistill.store.shard import shard_path
from samples.answers import IDENTITY, expected, fill, make_answers, make_manifest

forked = multiprocessing.get_context("fork")


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_a_store_is_made_filled_and_whole(tmp_path):
    manifest = make_manifest()
    writer = StoreWriter.open(tmp_path / "deep" / "store", manifest)
    assert writer.missing(2) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    for epoch, shard in writer.missing(2):
        writer.write(epoch, shard, *make_answers(manifest, epoch, shard))
    assert writer.missing(2) == []
    assert files(writer.path) == {
        "manifest.json",
        *(f"epoch-000{epoch}/shard-0000{shard}.safetensors" for epoch in range(2) for shard in range(3)),
    }
    assert verify(writer.path).sound


def test_writing_goes_on_where_it_ended_and_epochs_can_be_appended(tmp_path):
    manifest = make_manifest()
    first = StoreWriter.open(tmp_path, manifest)
    first.write(0, 1, *make_answers(manifest, 0, 1))
    again = StoreWriter.open(tmp_path, manifest)
    assert again.missing(1) == [(0, 0), (0, 2)]
    fill(tmp_path, manifest)
    before = contents(tmp_path)
    appended = fill(tmp_path, manifest, epochs=3)
    assert appended.missing(3) == []
    assert contents(tmp_path).items() > before.items()
    assert Store.open(tmp_path).num_epochs() == 3


def test_unreadable_images_are_simply_not_among_the_rows(tmp_path):
    manifest = make_manifest()
    writer = StoreWriter.open(tmp_path, manifest)
    samples, logits, _ = make_answers(manifest, 0, 0)
    writer.write(0, 0, samples[:5], logits[:5])
    writer.write(0, 1, samples[:0], logits[:0])  # none of its images can be read
    assert writer.missing(1) == [(0, 2)]
    writer.write(0, 2, *make_answers(manifest, 0, 2))
    store = Store.open(tmp_path)
    assert store.num_epochs() == 1
    assert len(store.ids(0)) == 5 + 4
    assert verify(tmp_path).num_rows == 9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"identity": {**IDENTITY, "teacher": {"weights": "cd34"}}}, "teacher.weights: stored 'ab12', now 'cd34'"),
        ({"identity": {**IDENTITY, "images": {"sizes": [32, 40]}}}, "seed: stored 0, now 'unset'.*stored 32, now 40"),
        ({"keep": Keep(3)}, "keep.top_k: stored None, now 3"),
        ({"shard_size": 9}, "shard_size: stored 8, now 9"),
        ({"num_samples": 21}, "num_samples: stored 20, now 21"),
        ({"num_classes": 11}, "num_classes: stored 10, now 11"),
        ({"keep": Keep(embeddings=True), "embedding_dims": (3,)}, r"\(keep.embeddings: stored False, now True\)"),
    ],
)
def test_another_store_is_refused_with_the_difference(tmp_path, change, words):
    fill(tmp_path, make_manifest())
    before = contents(tmp_path)
    with pytest.raises(InputError, match=words):
        StoreWriter.open(tmp_path, replace(make_manifest(), **change))
    assert contents(tmp_path) == before


def test_facts_are_not_compared_and_the_first_ones_stay(tmp_path):
    fill(tmp_path, make_manifest(facts={"top1": 0.5}))
    again = StoreWriter.open(tmp_path, make_manifest(facts={"top1": 0.6}))
    assert again.manifest.facts == {"top1": 0.5}


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds something else: notes\.txt"):
        StoreWriter.open(tmp_path, make_manifest())
    assert files(tmp_path) == {"notes.txt"}


def test_where_no_store_can_be_begun_is_known_before(tmp_path):
    check_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    check_folder(tmp_path)
    partial_path(tmp_path / "manifest.json").write_text("half")
    check_folder(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="which is a file"):
        check_folder(tmp_path / "file")
    (tmp_path / "file").rename(tmp_path / ".hidden")
    for check in (check_folder, lambda path: StoreWriter.open(path, make_manifest())):
        with pytest.raises(InputError, match=r"holds something else: \.hidden"):
            check(tmp_path)
    (tmp_path / ".hidden").unlink()
    StoreWriter.open(tmp_path, make_manifest())
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(tmp_path)  # a store is there


def test_only_the_shards_that_are_asked_about_are_looked_at(tmp_path):
    writer = fill(tmp_path, make_manifest())
    for shard in (0, 2):
        shard_path(tmp_path, 0, shard).unlink()
    assert writer.still_missing([(0, 1), (0, 2)]) == [(0, 2)]


def test_a_manifest_of_something_else_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"step": 3}')
    with pytest.raises(InputError, match="is no store's"):
        StoreWriter.open(tmp_path, make_manifest())


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(InputError, match="cannot write below"):
        StoreWriter.open(tmp_path / "store", make_manifest())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": torch.zeros(8, 3, dtype=torch.int64)}, r"samples \(8, 3\) int64"),
        ({"samples": torch.zeros(8, 2, dtype=torch.int32)}, r"samples \(8, 2\) int32"),
        ({"samples": torch.zeros(7, 2, dtype=torch.int64)}, r"samples \(7, 2\).*logits \(8, 10\)"),
        ({"samples": torch.tensor([[2**32, 0]] * 8)}, "ids 4294967296 to 4294967296"),
        ({"samples": torch.tensor([[-1, 0]] * 8)}, "ids -1 to -1"),
        ({"samples": torch.tensor([[0, 2**16]] * 8)}, "occurrences 65536 to 65536"),
        ({"logits": torch.zeros(8, 9)}, r"logits \(8, 9\)"),
        ({"logits": torch.full((8, 10), float("nan"))}, "80 of 80 are not finite"),
        ({"embeddings": []}, r"embeddings \[\]"),
        ({"embeddings": [torch.zeros(8, 4)]}, r"embeddings \[\(8, 4\)\]"),
        ({"embeddings": [torch.full((8, 3), 1e5)]}, "embeddings of teacher 0 up to 1e"),
        ({"epoch": -1}, "epoch -1"),
        ({"shard": 3}, "shard 3"),
        ({"shard": 2}, "shard 2 of epoch 0"),  # the last, with room for four
    ],
)
def test_answers_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, change, words):
    manifest = make_manifest(dims=(3,))
    writer = StoreWriter.open(tmp_path, manifest)
    samples, logits, embeddings = make_answers(manifest, 0, 0)
    good = {"epoch": 0, "shard": 0, "samples": samples, "logits": logits, "embeddings": embeddings}
    with pytest.raises(InputError, match=words):
        writer.write(**{**good, **change})
    assert files(tmp_path) == {"manifest.json"}
    writer.write(**good)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_refused_write_leaves_what_was_there(tmp_path, monkeypatch, number):
    manifest = make_manifest()
    writer = StoreWriter.open(tmp_path, manifest)
    writer.write(0, 0, *make_answers(manifest, 0, 0))
    before = contents(tmp_path)

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError) as error:
        writer.write(0, 1, *make_answers(manifest, 0, 1))
    assert os.strerror(number) in error.value.given
    assert ("MiB are free" in error.value.given) == (number in (errno.ENOSPC, errno.EDQUOT))
    monkeypatch.undo()
    assert contents(tmp_path) == before
    assert writer.missing(1) == [(0, 1), (0, 2)]
    assert fill(tmp_path, manifest).missing(1) == []


def in_a_process(function, *arguments):
    process = forked.Process(target=function, args=arguments)
    process.start()
    return process


def write_with_little_room(path, manifest, room, answer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        fill(path, manifest)
    except InputError as error:
        answer.send(str(error))


def test_a_disk_that_fills_up_leaves_whole_shards(tmp_path):
    """The system itself refuses, in the middle of the file."""
    manifest = make_manifest(num_samples=200, shard_size=120, num_classes=100)  # the second shard is smaller
    here, there = forked.Pipe()
    room = 8 + 120 * manifest.bytes_per_sample()  # not enough for the first one's header
    fill(tmp_path, manifest, epochs=0)
    writer = StoreWriter.open(tmp_path, manifest)
    writer.write(0, 1, *make_answers(manifest, 0, 1))
    process = in_a_process(write_with_little_room, tmp_path, manifest, room, there)
    assert here.poll(60)
    message = here.recv()
    process.join(60)
    assert "File too large" in message
    assert "make room and give the same again" in message
    assert files(tmp_path) == {"manifest.json", "epoch-0000/shard-00001.safetensors"}
    assert writer.missing(1) == [(0, 0)]
    fill(tmp_path, manifest)
    assert verify(tmp_path).sound


def write_these(path, manifest, places, start):
    start.wait(60)
    writer = StoreWriter.open(path, manifest)
    for epoch, shard in places:
        writer.write(epoch, shard, *make_answers(manifest, epoch, shard))


def test_many_writers_at_once_make_one_whole_store(tmp_path):
    """Four start in a folder that is not there yet; each writes shards of its own and some that others write too."""
    manifest = make_manifest(num_samples=100)
    places = [(epoch, shard) for epoch in range(2) for shard in range(manifest.num_shards)]
    start = forked.Event()
    processes = [
        in_a_process(write_these, tmp_path / "store", manifest, places[part::4] + places[::5], start)
        for part in range(4)
    ]
    start.set()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = verify(tmp_path / "store")
    assert found.sound
    assert (found.num_epochs, found.num_shards, found.num_rows) == (2, 26, 200)
    assert not [name for name in files(tmp_path) if name.endswith(".tmp")]
    store = Store.open(tmp_path / "store")
    for epoch in range(2):
        samples, logits, _ = expected(manifest, epoch)
        torch.testing.assert_close(store.read(epoch, samples).logits(), logits, rtol=2**-9, atol=2**-7)


def begin(path, manifest, start, answer):
    start.wait(60)
    try:
        answer.put(StoreWriter.open(path, manifest).manifest.identity["teacher"])
    except InputError as error:
        answer.put(error.given)


def test_of_two_different_stores_begun_at_once_one_is_made_and_the_other_refused(tmp_path):
    for attempt in range(5):
        path, start, answer = tmp_path / str(attempt), forked.Event(), forked.Queue()
        processes = [
            in_a_process(begin, path, make_manifest(identity={"teacher": name}), start, answer) for name in "ab"
        ]
        start.set()
        answers = sorted((answer.get(timeout=60) for _ in processes), key=len)
        for process in processes:
            process.join(60)
        assert answers[0] in ("a", "b")
        assert f"teacher: stored '{answers[0]}'" in answers[1]


def write_and_stop_before_the_end(path, manifest, inside, go_on):
    """As a writer does, but it waits with the whole file written under its temporary name."""
    writer = StoreWriter.open(path, manifest)
    sync = os.fsync

    def wait(descriptor):
        sync(descriptor)
        inside.set()
        go_on.wait(60)

    os.fsync = wait
    writer.write(0, 1, *make_answers(manifest, 0, 1))


@pytest.fixture
def stopped_writer(tmp_path):
    manifest = make_manifest()
    StoreWriter.open(tmp_path, manifest).write(0, 0, *make_answers(manifest, 0, 0))
    inside, go_on = forked.Event(), forked.Event()
    process = in_a_process(write_and_stop_before_the_end, tmp_path, manifest, inside, go_on)
    assert inside.wait(60)
    yield process, go_on
    process.kill()
    process.join(60)


def test_a_killed_writer_leaves_whole_shards_and_the_next_one_tidies_up(tmp_path, stopped_writer):
    process, _ = stopped_writer
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    (left,) = tmp_path.glob("epoch-0000/.*.tmp")
    assert left.stat().st_size > 100
    assert Store.open(tmp_path).num_epochs() == 0  # reading leaves it alone
    assert left.exists()
    writer = StoreWriter.open(tmp_path, make_manifest())
    assert not left.exists()
    assert writer.missing(1) == [(0, 1), (0, 2)]
    fill(tmp_path, make_manifest())
    assert verify(tmp_path).sound


def test_a_live_writer_is_left_alone(tmp_path, stopped_writer):
    process, go_on = stopped_writer
    (left,) = tmp_path.glob("epoch-0000/.*.tmp")
    writer = StoreWriter.open(tmp_path, make_manifest())
    assert left.exists()
    go_on.set()
    process.join(60)
    assert process.exitcode == 0
    assert not left.exists()
    assert writer.missing(1) == [(0, 2)]


def test_what_a_writer_elsewhere_left_goes_after_a_day(tmp_path):
    fill(tmp_path, make_manifest())
    left = tmp_path / "epoch-0000" / ".shard-00001.safetensors.0123456789ab-999999999-01234567.tmp"  # no process here
    others = tmp_path / "epoch-0000" / ".notes.tmp"
    for path in (left, others):
        path.write_text("half")
    StoreWriter.open(tmp_path, make_manifest())
    assert left.exists()
    old = time.time() - partials.STALE_SECONDS - 1
    for path in (left, others):
        os.utime(path, (old, old))
    StoreWriter.open(tmp_path, make_manifest())
    assert not left.exists()
    assert others.exists()  # no name of ours


def test_a_writer_killed_before_the_manifest_was_there_does_not_block_the_folder(tmp_path, monkeypatch):
    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", killed)
    monkeypatch.setattr("pathlib.Path.unlink", lambda path, missing_ok: None)
    with pytest.raises(KeyboardInterrupt):
        StoreWriter.open(tmp_path, make_manifest())
    monkeypatch.undo()
    assert [name for name in files(tmp_path) if name.startswith(".manifest.json.")]
    assert fill(tmp_path, make_manifest()).missing(1) == []


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    fill(tmp_path, make_manifest())
    assert verify(tmp_path).sound
    with pytest.raises(InputError, match="holds other answers"):
        StoreWriter.open(tmp_path, make_manifest(shard_size=3))


def test_a_shard_that_is_cut_short_or_of_another_store_is_missing(tmp_path):
    manifest = make_manifest()
    fill(tmp_path / "a", manifest)
    fill(tmp_path / "b", make_manifest(identity={"teacher": "other"}))
    writer = StoreWriter.open(tmp_path / "a", manifest)
    first = shard_path(tmp_path / "a", 0, 0)
    first.write_bytes(first.read_bytes()[:-1])
    shard_path(tmp_path / "a", 0, 2).write_bytes(shard_path(tmp_path / "b", 0, 2).read_bytes())
    assert writer.missing(1) == [(0, 0), (0, 2)]
    fill(tmp_path / "a", manifest)
    assert verify(tmp_path / "a").sound
