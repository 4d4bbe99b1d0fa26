import numpy as np
import pytest

from crossdistill.data import open_source
from crossdistill.data.sources import known
from crossdistill.errors import InputError
from crossdistill.settings import DataSettings


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSDISTILL_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """Ids that are asked of the hub, which cannot be reached."""
    asked = []

    def unreachable(name, settings, facts):
        asked.append((name, facts))
        raise InputError(f"data source hf:{name}: no connection", "a connection", "connect")

    monkeypatch.setattr(known, "open_hub", unreachable)
    return asked


def open_at(name, **settings):
    return open_source(DataSettings(source=name, **settings))


def test_a_parquet_copy_under_either_spelling(root, write_parquet):
    for split in ("train", "test"):
        write_parquet(root / "fashion-mnist" / f"{split}-0.parquet", [0, 9])
    splits = open_at("fashion_mnist")
    assert (len(splits.class_names), splits.class_names[9], splits.train.mirror_safe) == (10, "Ankle boot", True)
    assert splits.train.targets.tolist() == [0, 9]


@pytest.mark.parametrize("place", ["mnist", "mnist/raw", "mnist/MNIST/raw", "MNIST/raw", "MNIST"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_idx_copy_and_that_of_torchvision(root, write_idx, place, packed):
    write_idx(root / place, packed=packed)
    splits = open_at("mnist")
    assert (splits.class_names, splits.train.mirror_safe) == (tuple("0123456789"), False)
    assert (len(splits.train.targets), len(splits.evaluation.targets)) == (8, 4)


def test_an_idx_copy_of_what_may_be_mirrored(root, write_idx):
    write_idx(root / "FashionMNIST" / "raw")
    splits = open_at("fashion_mnist")
    assert (splits.class_names[0], splits.train.mirror_safe) == ("T-shirt/top", True)


def test_digits_are_not_mirrored_from_any_layout(root, write_npz, write_tree, write_parquet):
    write_npz(root / "mnist" / "mnist.npz")
    splits = open_at("mnist")
    assert (splits.train.mirror_safe, splits.evaluation_name, len(splits.class_names)) == (False, "test", 10)
    (root / "mnist" / "mnist.npz").unlink()
    for split in ("training", "testing"):
        write_tree(root / "mnist" / split, {"0": 2, "1": 2}, mode="L")
    assert not open_at("mnist").train.mirror_safe
    write_parquet(root / "mnist" / "train-0.parquet", [0, 1] * 5)
    assert not open_at("mnist").train.mirror_safe


def test_a_copy_of_save_to_disk(root, write_parquet):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    path = write_parquet(root / "rows.parquet", [0, 1])
    rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(root / "cache"))
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(root / "mnist"))
    splits = open_at("mnist")
    assert (splits.class_names, splits.train.mirror_safe) == (tuple("0123456789"), False)


def test_val_is_reported_where_test_has_no_labels(root, write_parquet):
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [-1, -1])):
        write_parquet(root / "imagenet" / "data" / f"{split}-0.parquet", labels)
    splits = open_at("imagenet")
    assert (splits.evaluation_name, splits.validation) == ("val", None)


def test_another_column_has_classes_of_its_own(root, write_parquet):
    for split in ("train", "test"):
        write_parquet(root / "cifar100" / f"{split}-0.parquet", [0, 1], coarse_label=[3, 4])
    assert open_at("cifar100").class_names[:2] == ("apple", "aquarium_fish")
    assert open_at("cifar100", label_column="coarse_label").class_names == ("3", "4")


def records(labels, seed=0):
    """CIFAR's binary records, and their images ``(N, 3, 32, 32)``."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    return np.concatenate([np.array(labels, np.uint8), images.reshape(len(labels), -1)], axis=1).tobytes(), images


def write_cifar10(folder):
    folder.mkdir(parents=True)
    images = []
    for number, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        content, pixels = records([[number], [9 - number]], seed=number)
        (folder / f"{name}.bin").write_bytes(content)
        images.append(pixels)
    return images


@pytest.mark.parametrize("place", ["cifar10", "cifar10/cifar-10-batches-bin", "cifar-10-batches-bin"])
def test_the_binary_version_of_cifar10(root, place):
    images = write_cifar10(root / place)
    splits = open_at("cifar10")
    assert splits.train.targets.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert splits.evaluation.targets.tolist() == [5, 4]
    assert splits.class_names[9] == "truck"
    for index in range(10):
        np.testing.assert_array_equal(splits.train.read(index), images[index // 2][index % 2])
    np.testing.assert_array_equal(splits.evaluation.read(1), images[5][1])


def test_the_binary_version_of_cifar100(root):
    folder = root / "cifar100" / "cifar-100-binary"
    folder.mkdir(parents=True)
    for split, labels in (("train", [[3, 20], [1, 99], [3, 21]]), ("test", [[1, 20]])):
        content, images = records(labels)
        (folder / f"{split}.bin").write_bytes(content)
    fine = open_at("cifar100")
    assert (fine.train.targets.tolist(), fine.class_names[20], len(fine.class_names)) == ([20, 99, 21], "chair", 100)
    np.testing.assert_array_equal(fine.evaluation.read(0), images[0])
    assert open_at("cifar100", label_column="coarse_label").class_names == ("1", "3")
    (folder / "coarse_label_names.txt").write_text("a\nb\nc\nd\n\n")
    coarse = open_at("cifar100", label_column="coarse_label")
    assert (coarse.train.targets.tolist(), coarse.class_names) == ([3, 1, 3], ("a", "b", "c", "d"))
    with pytest.raises(InputError, match=r"column 'kind'(?s:.*)coarse_label, fine_label"):
        open_at("cifar100", label_column="kind")
    assert len(open_at("cifar100", train_split="train", evaluation_split="test").evaluation.targets) == 1


def test_a_broken_binary_version(root):
    write_cifar10(root / "cifar10")
    path = root / "cifar10" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin, which has 6145 bytes, which is no whole number"):
        open_at("cifar10")
    path.unlink()
    with pytest.raises(InputError, match=r"data_batch_3\.bin, which cannot be read"):
        open_at("cifar10")


def test_a_bare_folder_of_the_binary_version_is_told_its_name(root):
    for folder in ("cifar10", "more/cifar-10-batches-bin"):
        write_cifar10(root / folder)
        around = (root / folder).parent
        with pytest.raises(InputError, match=f"give the known name cifar10, and set CROSSDISTILL_DATA={around}$"):
            open_at(str(root / folder))
    (root / "cifar10").rename(root / "pictures")
    told = f"rename the folder to cifar10 or cifar100, give that name, and set CROSSDISTILL_DATA={root}$"
    with pytest.raises(InputError, match=told):
        open_at(str(root / "pictures"))


def test_columns_of_copies_that_have_none(root, write_npz, write_idx):
    write_npz(root / "mnist" / "mnist.npz")
    write_cifar10(root / "cifar10")
    for name, key in (("mnist", "label_column"), ("mnist", "image_column"), ("cifar10", "image_column")):
        with pytest.raises(InputError, match=rf"data\.{key}='x' for .*{root}/{name}.*, which has no columns"):
            open_at(name, **{key: "x"})
    assert len(open_at("cifar10", label_column="label").train.targets) == 10


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar10", "cifar10/cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("cifar100", "cifar100/cifar-100-python.tar.gz"),
    ],
)
def test_the_pickled_version_is_refused(root, hub, name, place):
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(InputError, match=rf"(?s)for {name}, which is the pickled version.*binary version"):
        open_at(name)
    assert hub == []


def test_a_copy_of_no_known_layout(root, hub):
    (root / "mnist" / "notes").mkdir(parents=True)
    with pytest.raises(InputError, match=r"mnist for mnist, which holds notes\n.*parquet, IDX, npz"):
        open_at("mnist")
    assert hub == []


def test_shards_have_a_source_of_their_own(root, hub):
    (root / "imagenet").mkdir()
    (root / "imagenet" / "train-0000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=f"give the data source 'wds:{root}/imagenet' instead"):
        open_at("imagenet")
    with pytest.raises(InputError, match=f"did you mean 'wds:{root}/imagenet'"):
        open_at(str(root / "imagenet"))


def test_the_pickled_version_of_another_set_does_not_matter(root, hub):
    (root / "cifar-10-batches-py").mkdir()
    with pytest.raises(InputError, match="no folder cifar100 below"):
        open_at("cifar100")


@pytest.mark.parametrize("name", sorted(known.KNOWN))
def test_neither_a_copy_nor_the_hub(root, hub, name, monkeypatch):
    with pytest.raises(InputError, match=rf"(?s)no folder {name} below CROSSDISTILL_DATA={root}, and .*{root}/{name}"):
        open_at(name)
    monkeypatch.delenv("CROSSDISTILL_DATA")
    with pytest.raises(
        InputError, match=r"(?s)CROSSDISTILL_DATA is not set.*\$CROSSDISTILL_DATA/.*parquet, IDX"
    ) as caught:
        open_at(name)
    assert [one for one, _ in hub] == [known.KNOWN[name].hub] * (2 if known.KNOWN[name].hub else 0)
    assert ("no connection" in caught.value.given) == bool(hub)


def test_the_hub_is_asked_where_there_is_no_copy(monkeypatch):
    monkeypatch.delenv("CROSSDISTILL_DATA", raising=False)
    from crossdistill.data.sources.digits import open_digits

    monkeypatch.setattr(known, "open_hub", lambda name, settings, facts: open_digits(settings.model_copy()))
    assert len(open_at("mnist").train.targets) == 1437
