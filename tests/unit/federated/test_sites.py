"""What one client has: parts of a set, folders of their own, columns; nothing shared but the transfer set."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crossdistill.data import open_labelled
from crossdistill.errors import InputError
from crossdistill.federated.sites import Images, Pooled, Renamed, fingerprint, open_own, sites_of
from samples.federations import small


def write_images(folder, num, *, seed=0, size=(8, 8)):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{seed}-{index:03d}.png")


@pytest.fixture
def hospitals(tmp_path):
    """Two sites that know two of three classes each, and images that both may see."""
    for site, classes in {"north": ("cat", "dog"), "south": ("dog", "emu")}.items():
        for number, name in enumerate(classes):
            write_images(tmp_path / "sites" / site / name, 10, seed=len(site + name) * 10 + number)
    write_images(tmp_path / "shared", 7, seed=5)
    return tmp_path


def of_folders(root, *overrides, **tree):
    given = {
        "data": {"source": f"folder:{root / 'sites'}"},
        "partition": {"kind": "folder"},
        "transfer": {"source": f"folder:{root / 'shared'}"},
        "clients": 2,
        **tree,
    }
    return small(*overrides, **given)


def test_parts_share_the_transfer_set_and_nothing_else(settings):
    sites = sites_of(settings)
    taken = [np.concatenate([site.train.ids, site.val.ids]) for site in sites]
    together = np.concatenate(taken)
    assert len(np.unique(together)) == len(together) == 3 * 30
    for site in sites:
        assert np.array_equal(site.transfer.ids, sites[0].transfer.ids)
        assert not set(site.transfer.ids) & set(together)
        assert site.shares.sum() == pytest.approx(1)
        assert len(site.val) == 6
        assert site.histogram.sum() == 30


def test_another_seed_deals_otherwise_and_another_strategy_does_not(settings):
    assert sites_of(settings) is sites_of(settings.model_copy(update={"strategy": "local"}))
    other = sites_of(settings.model_copy(update={"seed": 1}))
    assert not np.array_equal(other[0].train.ids, sites_of(settings)[0].train.ids)


def test_fewer_test_images_may_do(settings):
    few = sites_of(small("partition.test_limit=50"))
    assert len(few[0].test) == 50
    assert np.array_equal(few[0].test.ids, few[1].test.ids)
    assert len(sites_of(settings)[0].test) > 300


def test_a_set_of_its_own_may_be_the_transfer_set(settings, tmp_path):
    write_images(tmp_path / "shared", 9)
    sites = sites_of(small(transfer={"source": f"folder:{tmp_path / 'shared'}"}))
    assert len(sites[0].transfer) == 9
    limited = sites_of(small(transfer={"source": f"folder:{tmp_path / 'shared'}", "limit": 4}))
    assert len(limited[0].transfer) == 4


def test_folders_are_sites_and_classes_are_numbered_alike(hospitals):
    north, south = sites_of(of_folders(hospitals))
    assert (north.name, south.name) == ("north", "south")
    assert north.class_names == south.class_names == ("cat", "dog", "emu")
    assert set(north.train.source.targets) == {0, 1}
    assert set(south.train.source.targets) == {1, 2}
    assert len(north.transfer) == 7
    assert (north.transfer.source.targets == -1).all()
    assert north.shares is None
    assert len(north.everyone) == len(north.test) + len(south.test)
    read = north.everyone.source.read(len(north.test))
    assert np.array_equal(read, south.test.source.read(int(south.test.ids[0])))


def test_a_site_alone_is_the_site_of_the_simulation(hospitals):
    whole = of_folders(hospitals)
    settings = whole.model_copy(update={"classes": ("cat", "dog", "emu")})
    _, south = sites_of(whole)
    own = open_own(
        settings,
        client=1,
        name="south",
        data=f"folder:{hospitals / 'sites' / 'south'}",
        transfer=f"folder:{hospitals / 'shared'}",
    )
    assert np.array_equal(own.train.ids, south.train.ids)
    assert np.array_equal(own.val.ids, south.val.ids)
    assert np.array_equal(own.train.source.targets, south.train.source.targets)
    assert fingerprint(own.transfer) == fingerprint(south.transfer)


def test_a_site_may_know_one_class_only(hospitals):
    write_images(hospitals / "sites" / "west" / "emu", 6, seed=9)
    west = sites_of(of_folders(hospitals, clients=3))[2]
    assert west.name == "west"
    assert set(west.train.source.targets) == {2}
    own = of_folders(hospitals, classes=("cat", "dog", "emu"))
    folder, shared = f"folder:{hospitals / 'sites' / 'west'}", f"folder:{hospitals / 'shared'}"
    assert len(open_own(own, client=2, name="west", data=folder, transfer=shared).train) == len(west.train)
    with pytest.raises(InputError, match="only one class"):
        open_labelled(own.data.model_copy(update={"source": folder}))


def test_a_class_that_the_others_do_not_know_is_refused(hospitals):
    settings = of_folders(hospitals, classes=("cat", "dog"))
    with pytest.raises(InputError, match="emu"):
        sites_of(settings)


def test_a_site_alone_needs_classes_and_a_transfer_set(hospitals):
    where = {"client": 0, "name": "north", "data": f"folder:{hospitals / 'sites' / 'north'}"}
    with pytest.raises(InputError, match="names of all classes"):
        open_own(of_folders(hospitals), transfer="folder:x", **where)
    lacking = of_folders(hospitals, classes=("cat", "dog", "emu"), transfer={})
    with pytest.raises(InputError, match="transfer set"):
        open_own(lacking, transfer=None, **where)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clients": 3}, "2 sites"),
        ({"transfer": {}}, "without a transfer set"),
        ({"data": {"source": "digits"}}, "one folder a site"),
        ({"data": {"source": "folder:nowhere"}}, "one folder a site"),
    ],
)
def test_folders_that_do_not_fit_are_refused(hospitals, change, words):
    with pytest.raises(InputError, match=words):
        sites_of(of_folders(hospitals, **change))


def test_one_site_is_none(hospitals):
    (hospitals / "one" / "only").mkdir(parents=True)
    with pytest.raises(InputError, match="two or more"):
        sites_of(of_folders(hospitals, data={"source": f"folder:{hospitals / 'one'}"}))


@pytest.fixture
def by_hospital(tmp_path):
    """A parquet file whose rows are of three hospitals."""
    import io

    random, rows = np.random.default_rng(0), []
    for index in range(90):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(file, "PNG")
        rows.append({"image": {"bytes": file.getvalue()}, "label": index % 3, "hospital": "abc"[index % 7 % 3]})
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set" / "train-0.parquet")
    return tmp_path


def test_a_column_says_who_has_what(by_hospital):
    table = pq.read_table(by_hospital / "set" / "train-0.parquet").to_pylist()
    settings = small(
        data={"source": f"parquet:{by_hospital / 'set'}"},
        partition={"kind": "column", "column": "hospital"},
    )
    sites = sites_of(settings)
    assert [site.name for site in sites] == ["a", "b", "c"]
    for site in sites:
        own = np.concatenate([site.train.ids, site.val.ids, site.test.ids])
        assert len(np.unique(own)) == len(own)
        source = site.train.source
        rows = [int(source.describe(int(index)).rpartition(" ")[2]) for index in own]
        assert {table[row]["hospital"] for row in rows} == {site.name}
        assert not set(own) & set(site.transfer.ids)


def test_an_unknown_column_and_other_sources_are_refused(by_hospital):
    source = f"parquet:{by_hospital / 'set'}"
    with pytest.raises(InputError, match="clinic"):
        sites_of(small(data={"source": source}, partition={"kind": "column", "column": "clinic"}))
    with pytest.raises(InputError, match="parquet"):
        sites_of(small(partition={"kind": "column", "column": "hospital"}))
    with pytest.raises(InputError, match="name of the column"):
        small(partition={"kind": "column"})


def test_the_fingerprint_knows_order_and_pixels(settings):
    transfer = sites_of(settings)[0].transfer
    same = Images(transfer.source, transfer.ids.copy())
    turned = Images(transfer.source, transfer.ids[::-1])
    fewer = Images(transfer.source, transfer.ids[:-1])
    assert fingerprint(transfer) == fingerprint(same)
    assert len({fingerprint(one) for one in (transfer, turned, fewer)}) == 3


def test_a_transfer_image_that_cannot_be_read_is_told(hospitals):
    (hospitals / "shared" / "5-003.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="transfer set, which cannot be read"):
        fingerprint(sites_of(of_folders(hospitals))[0].transfer)


def test_pooled_images_are_those_of_their_parts(settings):
    parts = [site.train for site in sites_of(settings)]
    pooled = Pooled(parts)
    assert len(pooled.targets) == sum(map(len, parts))
    at = len(parts[0]) + 2
    assert np.array_equal(pooled.read(at), parts[1].source.read(int(parts[1].ids[2])))
    assert pooled.targets[at] == parts[1].source.targets[parts[1].ids[2]]
    assert pooled.describe(at) == parts[1].source.describe(int(parts[1].ids[2]))


def test_a_renamed_source_keeps_unlabelled_images_unlabelled(settings):
    source = sites_of(settings)[0].train.source
    names = tuple(reversed(source.class_names))
    renamed = Renamed.of(source, names, "it")
    assert all(names[new] == source.class_names[old] for new, old in zip(renamed.targets, source.targets, strict=True))
