"""The picture holds what training sees: its cells are compared with whole epochs of the real loaders."""

import sys

import numpy as np
import pytest
import torch

from crossdistill.contracts import InputSpec
from crossdistill.data import EvalLoader, TrainLoader, open_source, select_training
from crossdistill.errors import InputError
from crossdistill.runs.look import describe_augment, look, sources_of
from crossdistill.runs.sample_views import Training, choose_samples, sample_rows
from crossdistill.settings import AugmentSettings, DataSettings, TrainSettings
from samples import image_folder

SPEC = InputSpec((16, 16), 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ALL = AugmentSettings(
    rand_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, erase=0.25, mixup=0.8, cutmix=1.0, crop="resized", flip=0.5
)


@pytest.fixture(scope="module")
def digits():
    return open_source(DataSettings(source="digits")).train


def training(source, augment=ALL, *, spec=SPEC, seed=3, batch_size=20, **more):
    settings = DataSettings(source="digits", limit_train=101)
    chosen = select_training(source.targets, settings, seed, False)
    return Training(source, chosen.train_ids, source.targets, spec, augment, seed, batch_size, **more)


def shown(images, spec=SPEC):
    """Prepared images with their normalisation taken back, written out for one channel after the other."""
    channels = [
        images[:, at] * spec.std[at % len(spec.std)] + spec.mean[at % len(spec.mean)] for at in range(images.shape[1])
    ]
    pixels = torch.stack(channels, dim=-1).clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.numpy()


def epoch_of_a_run(own, epoch, **options):
    """Every sample of a real epoch: the pixels and the target of each showing, in turn."""
    loader = TrainLoader(
        own.source,
        own.ids,
        own.targets,
        {"student": own.spec, "teacher": InputSpec((24, 24), 3, (0.5,) * 3, (0.5,) * 3)},
        own.augment,
        seed=own.seed,
        batch_size=own.batch_size,
        balanced=own.balanced,
        workers=0,
        max_corrupt_share=1.0,
        **options,
    )
    seen = {}
    for step in loader.epoch(epoch):
        for batch in step:
            pixels = shown(batch.images["student"], own.spec)
            for index, image, target in zip(batch.sample_id.tolist(), pixels, batch.target, strict=True):
                seen.setdefault(index, []).append((image, target))
    return seen


def compare_with_whole_epochs(own, samples, *, num_epochs=3, **options):
    """Compare all cells of the picture with real epochs; how many were compared, and how many are not shown."""
    columns, rows = sample_rows(own, samples, num_epochs=num_epochs)
    assert columns == ["as evaluated", *(f"epoch {epoch + 1}" for epoch in range(num_epochs))]
    num_compared = num_missing = 0
    for epoch in range(num_epochs):
        seen = epoch_of_a_run(own, epoch, **options)
        for index, row in zip(samples, rows, strict=True):
            cell = row.cells[epoch + 1]
            assert (cell is None) == (index not in seen)
            if cell is None:
                num_missing += 1
                continue
            image, target = seen[index][0]
            assert (cell.pixels == image).all()
            num_compared += 1
            assert len(cell.caption) == (int((target > 0.005).sum()) if target.ndim and target.max() <= 0.995 else 0)
            for line in cell.caption:
                share, name = line.split(" % · ")
                assert float(share) == round(100 * float(target[own.source.class_names.index(name)]))
    return num_compared, num_missing


@pytest.mark.parametrize("batch_size", [18, 7, 500])
@pytest.mark.parametrize(
    "augment",
    [ALL, AugmentSettings(), ALL.model_copy(update={"mixup": 0.0, "cutmix": 0.0})],
    ids=["all", "none", "one"],
)
def test_cells_are_what_a_run_trains_on(digits, augment, batch_size):
    own = training(digits, augment, batch_size=batch_size)
    num_compared, num_missing = compare_with_whole_epochs(own, choose_samples(own, 40))
    assert num_compared + num_missing == 120
    assert (num_missing > 0) == (batch_size < 101), "the incomplete last step of an epoch is dropped"


@pytest.mark.parametrize("batch_size", [7, 20, 64])
def test_cells_of_a_class_balanced_run_are_what_it_trains_on(digits, batch_size):
    """Of three classes one is so small that its images are shown many times an epoch, and mixed with one another."""
    ids = np.concatenate([np.flatnonzero(digits.targets == one)[:many] for one, many in enumerate((50, 12, 2))])
    own = Training(digits, ids, digits.targets, SPEC, ALL, 1, batch_size, balanced=True)
    samples = ids[::2].tolist()
    shown = [own.loader().plan(epoch) for epoch in range(3)]
    firsts = [{sample: again for step in plan for part in step for sample, again in part[::-1]} for plan in shown]
    assert any(again > 0 for first in firsts for again in first.values()), "some are met first where they come again"
    num_compared, num_missing = compare_with_whole_epochs(own, samples)
    assert num_compared > 25
    assert num_missing > 25


def test_cells_do_not_depend_on_micro_batches(digits):
    own = training(digits, batch_size=9)
    assert compare_with_whole_epochs(own, choose_samples(own, 20), num_epochs=1, device_batch_size=4) == (20, 0)


def test_partners_that_cannot_be_read_are_as_in_a_run(tmp_path):
    root = image_folder.make(tmp_path, ["ant", "bee"], num_images=9)
    for place in ("ant/0.png", "ant/4.png", "bee/2.png", "bee/7.png", "bee/8.png"):
        (root / "train" / place).write_bytes(b"broken")
    source = open_source(DataSettings(source=f"folder:{root}")).train
    own = Training(source, np.arange(18), source.targets, SPEC, ALL, 0, batch_size=5)
    num_compared, num_missing = compare_with_whole_epochs(own, choose_samples(own, 18), num_epochs=6)
    assert num_compared + num_missing == 13 * 6
    assert num_compared > 50


def test_grey_and_colour_images_are_as_in_a_run(tmp_path):
    for place, mode in (("colour", "RGB"), ("grey", "L")):
        root = image_folder.make(tmp_path / place, ["ant", "bee"], num_images=20, splits=("train",), mode=mode)
        for path in root.rglob("*.png"):
            path.rename(path.with_name(f"{place}{path.name}"))
    for path in (tmp_path / "grey").rglob("*.png"):
        path.rename(tmp_path / "colour" / path.relative_to(tmp_path / "grey"))
    source = open_source(DataSettings(source=f"folder:{tmp_path / 'colour' / 'train'}")).train
    assert source.num_channels is None
    ids = np.arange(len(source.targets))
    own = Training(source, ids, source.targets, SPEC, ALL, 0, batch_size=8)
    assert compare_with_whole_epochs(own, ids.tolist()) == (3 * len(ids), 0)


def test_the_first_column_is_what_accuracy_is_measured_on(digits):
    own = training(digits, crop_pct=0.5)
    samples = choose_samples(own, 4)
    _, rows = sample_rows(own, samples, num_epochs=0)
    loader = EvalLoader(digits, {"student": SPEC}, batch_size=500, crop_pct=0.5, workers=0)
    everything = np.concatenate([shown(batch.images["student"]) for batch in loader])
    for index, row in zip(samples, rows, strict=True):
        assert (row.cells[0].pixels == everything[index]).all()
        assert row.cells[0].caption == ()
        assert row.title == digits.class_names[digits.targets[index]]


def test_a_grey_student_is_shown_in_grey(digits):
    own = training(digits, spec=InputSpec((8, 8), 1, (0.5,), (0.5,)))
    _, rows = sample_rows(own, choose_samples(own, 3), num_epochs=1)
    for row in rows:
        for cell in row.cells:
            assert cell.pixels.shape == (8, 8, 3)
            assert (cell.pixels == cell.pixels[..., :1]).all()


def test_a_class_balanced_epoch_leaves_out_images_of_large_classes(digits):
    few = np.concatenate([np.flatnonzero(digits.targets == 0)[:60], np.flatnonzero(digits.targets == 1)[:4]])
    own = Training(digits, few, digits.targets, SPEC, AugmentSettings(), 0, 64, balanced=True)
    samples = [int(index) for index in [*few[:8], *few[-2:]]]
    _, rows = sample_rows(own, samples, num_epochs=2)
    for epoch in range(2):
        seen = epoch_of_a_run(own, epoch)
        for index, row in zip(samples, rows, strict=True):
            cell = row.cells[epoch + 1]
            assert (cell is None) == (index not in seen)
            assert cell is None or any((cell.pixels == image).all() for image, _ in seen[index])
    cells = [cell for row in rows for cell in row.cells[1:]]
    assert any(cell is None for cell in cells[:16])
    assert all(cell is not None for cell in cells[-4:])


@pytest.mark.parametrize(("number", "per_class"), [(10, [1] * 10), (13, [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]), (2, [1, 1])])
def test_samples_are_spread_over_the_classes(digits, number, per_class):
    own = training(digits)
    samples = choose_samples(own, number)
    classes, counts = np.unique(digits.targets[samples], return_counts=True)
    assert counts.tolist() == per_class
    assert set(classes) >= {0, 9}
    assert digits.targets[samples].tolist() == sorted(digits.targets[samples])
    assert set(samples) <= set(own.ids.tolist())
    assert samples == choose_samples(own, number)
    assert choose_samples(own, 500) == sorted(choose_samples(own, 500), key=lambda index: digits.targets[index])
    assert len(choose_samples(own, 500)) == 101


def test_unlabelled_and_unreadable_images_are_not_chosen(tmp_path):
    root = image_folder.make(tmp_path, ["ant", "bee"], num_images=3)
    for place in ("ant/0.png", "ant/1.png", "bee/2.png"):
        (root / "train" / place).write_bytes(b"broken")
    source = open_source(DataSettings(source=f"folder:{root}")).train
    targets = source.targets.copy()
    targets[3] = -1
    own = Training(source, np.arange(6), targets, SPEC, AugmentSettings(mixup=1.0), 0, batch_size=6)
    samples = choose_samples(own, 6)
    assert [source.describe(index)[-9:] for index in samples] == ["ant/2.png", "bee/1.png"]
    _, rows = sample_rows(own, samples, num_epochs=20)
    assert all(cell is not None for row in rows for cell in row.cells)
    captions = {line for row in rows for cell in row.cells for line in cell.caption}
    assert captions, "some are mixed"


def test_augmentation_in_words():
    assert describe_augment(AugmentSettings(crop="none", flip=0)) == "no random change"
    assert describe_augment(ALL) == (
        "resized crop 0.08 to 1, flip 0.5, rand-m9-mstd0.5-inc1, colour jitter 0.4, erase 0.25, mixup 0.8, cutmix 1"
    )


def test_splits_by_name(tmp_path):
    root = image_folder.make(tmp_path, ["ant", "bee"], splits=("train", "val", "test"))
    assert list(sources_of(open_source(DataSettings(source=f"folder:{root}")))) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], [8, 8]),
        (["student.name=test_resnet"], [160, 160]),
        (["student.name=test_resnet@pretrained"], [160, 160]),  # its pixels need none of its weights
        (["student.name=test_resnet", "student.image_size=64"], [64, 64]),
    ],
)
def test_the_size_is_the_student_s_else_that_of_tiny_images(tmp_path, overrides, size):
    found = look("digits", overrides=overrides, num_samples=1, picture=tmp_path / "a.png")
    assert found["picture"]["image_size"] == size
    bigger = look("digits", overrides=overrides, num_samples=1, picture=tmp_path / "a.png", image_size=96)
    assert bigger["picture"]["image_size"] == [96, 96]


def test_large_images_are_shown_at_224(tmp_path, capsys):
    from PIL import Image

    for name in ("ant", "bee"):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (90, 70), (index, 50, 90)).save(tmp_path / name / f"{index}.png")
    found = look(f"folder:{tmp_path}", num_samples=1, picture=tmp_path / "a.png")
    assert found["picture"]["image_size"] == [224, 224]
    assert found["picture"]["augment"]["crop"] == "resized"


def test_the_batch_size_is_that_of_the_recipe(tmp_path, monkeypatch):
    drawn = []
    module = sys.modules[look.__module__]  # whose name in the package is the function's
    monkeypatch.setattr(module, "_draw", lambda training, *_: drawn.append(training))
    for recipe, overrides in (
        (None, []),
        ("digits/few-labels", ["train.batch_size=50"]),
        ("digits/few-labels", ["train.batch_size=51", "data.sampling=class_balanced"]),
    ):
        look("digits", recipe, overrides, picture=tmp_path / "a.png")
    assert [one.batch_size for one in drawn] == [TrainSettings().batch_size, 50, 51]
    assert [one.balanced for one in drawn] == [False, False, True]


@pytest.mark.parametrize(("seed", "overrides"), [(-1, []), (2**63, []), (None, ["seed=-1"]), (None, ["seed=1.5"])])
def test_seeds_that_are_none_are_refused_in_words(tmp_path, seed, overrides):
    with pytest.raises(InputError, match=rf"seed (= )?'?{seed if seed is not None else overrides[0][5:]}"):
        look("digits", overrides=overrides, seed=seed, picture=tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_picture_is_no_folder(tmp_path):
    with pytest.raises(InputError) as caught:
        look("digits", picture=tmp_path)
    assert caught.value.given == f"the picture {tmp_path}, which is a folder"
    assert caught.value.action == f"give {tmp_path / 'data-samples.png'} instead"


def test_only_remote_shards_are_called_a_stream(tmp_path):
    facts = ["data.stream={num_train: 8, class_names: [ant, bee]}"]
    with pytest.raises(InputError) as caught:  # these settings make no stream of them
        look("digits", overrides=facts, picture=tmp_path / "a.png")
    assert "remote stream" not in caught.value.given
    assert "data.stream" in caught.value.given
    pytest.importorskip("webdataset")
    with pytest.raises(InputError, match=r"remote stream 'wds:http"):
        look("wds:http://127.0.0.1:9/train-{0..3}.tar", overrides=facts, picture=tmp_path / "a.png")


def test_figures_count_all_labels_of_the_source(tmp_path):
    """``data.labels_per_class`` decides what the picture shows, not what the data hold."""
    kept = ["data.labels_per_class=2"]
    found = look("digits", overrides=kept, num_samples=30, picture=tmp_path / "a.png", quick=True)
    assert found["splits"]["train"]["num_labelled"] == 1437
    assert len(found["picture"]["samples"]) == 20


def test_a_set_of_broken_images_is_refused(tmp_path):
    root = image_folder.make(tmp_path, ["ant", "bee"], num_images=1)
    for path in root.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match="of which no image can be read"):
        look(f"folder:{root}", picture=tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
