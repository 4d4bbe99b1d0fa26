"""All of the published augmentations together, as the loader applies them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossdistill.data import TrainLoader, open_source
from crossdistill.data.augmentation.transform import TrainTransform
from crossdistill.data.pixels import cut
from crossdistill.data.sampler import shuffled
from crossdistill.errors import InputError
from crossdistill.settings import AugmentSettings, DataSettings

PUBLISHED = AugmentSettings(
    crop="resized",
    flip=0.5,
    interpolation="random",
    rand_augment="rand-m9-mstd0.5-inc1",
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
)
JITTERED = AugmentSettings(crop="resized", flip=0.5, color_jitter=0.4)


@pytest.fixture
def photos(tmp_path, write_tree):
    """Forty-two files of two sizes and three classes of which one is rare."""
    write_tree(tmp_path / "train", {"a": 20, "c": 2}, size=(40, 44))
    write_tree(tmp_path / "train", {"b": 20}, size=(45, 31), first_seed=100)
    return open_source(DataSettings(source=f"folder:{tmp_path / 'train'}")).train


@pytest.fixture
def tiles(tmp_path, write_tree):
    """Images of one size, which are held in memory."""
    return open_source(DataSettings(source=f"folder:{write_tree(tmp_path / 'tiles', {'a': 16, 'b': 16})}")).train


def loader(source, spec, augment=PUBLISHED, **options):
    views = {"student": spec(16), "teacher0": spec(16, mean=0.1), "teacher1": spec(24, interpolation="bilinear")}
    ids = np.arange(len(source.targets))
    options = {"seed": 0, "batch_size": 8, "workers": 0} | options
    return TrainLoader(source, ids, source.targets, views, augment, **options)


def batches(one, epoch=0):
    return [batch for step in one.epoch(epoch) for batch in step]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.sample_id, other.sample_id)
        assert torch.equal(one.target, other.target)
        assert all(torch.equal(one.images[view], other.images[view]) for view in one.images)


@pytest.mark.parametrize("augment", [PUBLISHED, JITTERED], ids=["published", "jittered"])
@pytest.mark.parametrize("kind", ["photos", "tiles"])
def test_workers_and_the_place_of_the_work_do_not_change_batches(request, spec, kind, augment):
    source = request.getfixturevalue(kind)
    alone = batches(loader(source, spec, augment), 1)
    assert_same(alone, batches(loader(source, spec, augment, workers=1), 1))
    for workers in (0, 1):
        device = torch.device("cpu")
        assert_same(alone, batches(loader(source, spec, augment, workers=workers, augment_device=device), 1))


def test_two_processes_see_together_what_one_sees(photos, spec):
    whole = [torch.cat([batch.images["student"] for batch in step]) for step in loader(photos, spec).epoch(0)]
    ranks = [list(loader(photos, spec, rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    for step, expected in enumerate(whole):
        shares = [batch for rank in ranks for batch in rank[step]]
        assert torch.equal(torch.cat([batch.images["student"] for batch in shares]), expected)


def test_a_resumed_epoch_and_micro_batches_are_parts_of_the_whole(photos, spec):
    whole = [batch for (batch,) in loader(photos, spec).epoch(2)]
    assert_same(whole[3:], [batch for (batch,) in loader(photos, spec).epoch(2, start_step=3)])
    for batch, parts in zip(whole, loader(photos, spec, device_batch_size=4).epoch(2), strict=True):
        assert len(parts) == 2
        assert torch.equal(torch.cat([part.images["teacher1"] for part in parts]), batch.images["teacher1"])
        assert torch.equal(torch.cat([part.target for part in parts]), batch.target)


def test_targets_are_probabilities_of_the_image_and_its_neighbour(photos, spec):
    for batch in batches(loader(photos, spec)):
        assert batch.target.shape == (8, 3)
        assert batch.target.dtype == torch.float32
        torch.testing.assert_close(batch.target.sum(1), torch.ones(8))
        own = torch.from_numpy(photos.targets)[batch.sample_id]
        partner = own.view(-1, 2).flip(1).flatten()
        assert ((batch.target > 0).sum(1) <= 1 + (own != partner)).all()
        assert (batch.target.gather(1, own[:, None]) + batch.target.gather(1, partner[:, None]) > 0.99).all()


def test_an_unreadable_partner_leaves_an_image_unmixed(tmp_path, write_tree, spec):
    write_tree(tmp_path / "train", {"a": 4, "b": 4}, size=(40, 40))
    write_tree(tmp_path / "val", {"a": 1, "b": 1}, size=(40, 40))
    (tmp_path / "train" / "a" / "002.png").write_bytes(b"broken")
    source = open_source(DataSettings(source=f"folder:{tmp_path}")).train
    (batch,) = batches(loader(source, spec, batch_size=64, max_corrupt_share=0.5))
    order = shuffled(8, seed=0, epoch=0)[:, 0].tolist()
    place = order.index(2)
    alone = order[place ^ 1]
    assert batch.sample_id.tolist() == [index for index in order if index != 2]
    row = batch.sample_id.tolist().index(alone)
    assert batch.target[row].tolist() == [float(alone < 4), float(alone >= 4)]
    (unmixed,) = batches(
        loader(
            source,
            spec,
            PUBLISHED.model_copy(update={"mixup": 0.0, "cutmix": 0.0}),
            batch_size=64,
            max_corrupt_share=0.5,
        )
    )
    same = (batch.images["student"] == unmixed.images["student"]).flatten(1).all(1)
    assert same[row]
    assert not same.all()


def test_few_labels_are_not_lost_by_mixing(photos, spec):
    targets = np.where(np.arange(len(photos.targets)) % 7, -1, photos.targets)
    mixed = TrainLoader(photos, np.arange(len(targets)), targets, {"student": spec(8)}, PUBLISHED, seed=0, batch_size=8)
    batch = torch.cat([batch.target for batch in batches(mixed)])
    sample_id = torch.cat([batch.sample_id for batch in batches(mixed)])
    assert torch.equal(batch.sum(1) > 0, torch.from_numpy(targets >= 0)[sample_id])


def test_a_grey_image_is_changed_alike_beside_grey_and_coloured_ones(spec):
    images = [torch.full((1, 24, 24), 40 + index, dtype=torch.uint8) for index in range(20)]
    chosen = AugmentSettings(crop="none", flip=0.0, rand_augment="rand-m9-mstd0.5-inc1-p1", erase=0.5)
    transform = TrainTransform({"student": replace(spec(24), mean=(0.2, 0.5, 0.8))}, chosen, 0)
    grey = transform(torch.stack(images), np.arange(20), 0)["student"]
    colour = transform([image.expand(3, -1, -1) for image in images], np.arange(20), 0)["student"]
    assert torch.equal(grey, colour)


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_the_smallest_images_and_views_go_through_everything(spec, side, crop):
    chosen = PUBLISHED.model_copy(update={"crop": crop, "ratio": (3.0, 4.0), "erase": 1.0, "color_jitter": 0.4})
    images = [torch.zeros(3, side, 1 + index % 3, dtype=torch.uint8) for index in range(12)]
    for size in (side, 4):
        views = TrainTransform({"student": spec(size)}, chosen, 0)(images, np.arange(12), 0)
        assert views["student"].shape == (12, 3, size, size)


def test_a_policy_that_is_none_is_refused_when_the_loader_is_made(tiles, spec):
    with pytest.raises(InputError, match=r"rand_augment='rand-m9-foo1'"):
        loader(tiles, spec, AugmentSettings(rand_augment="rand-m9-foo1"))


def test_rare_classes_come_again_and_look_different_each_time(photos, spec):
    balanced = loader(photos, spec, JITTERED, balanced=True, batch_size=42)
    rare = np.flatnonzero(photos.targets == photos.class_names.index("c"))
    (batch,) = batches(balanced)
    counts = torch.bincount(batch.target)
    assert counts.max() - counts.min() <= 1
    for sample in rare:
        views = batch.images["student"][batch.sample_id == sample]
        assert len(views) >= 4
        assert len(torch.unique(views.flatten(1), dim=0)) == len(views)


def test_class_counts_leave_out_what_is_unlabelled(photos, spec):
    targets = np.where(np.arange(len(photos.targets)) % 2, photos.targets, -1)
    one = TrainLoader(photos, np.arange(10), targets, {"student": spec(8)}, JITTERED, seed=0, batch_size=2)
    expected = [int((targets[:10] == index).sum()) for index in range(3)]
    assert one.class_counts.tolist() == expected


def test_random_interpolation_takes_each_kernel_half_the_time(spec, monkeypatch):
    kernels = []
    monkeypatch.setattr(
        "crossdistill.data.augmentation.transform.cut", lambda *args: kernels.append(args[3]) or cut(*args[:3], args[3])
    )
    images = torch.zeros(2000, 1, 2, 2, dtype=torch.uint8)
    chosen = AugmentSettings(crop="none", flip=0.0, interpolation="random")
    TrainTransform({"student": spec(2, 1)}, chosen, 0)(images, np.arange(2000), 0)
    assert set(kernels[0]) == {"bicubic", "bilinear"}
    assert abs((kernels[0] == "bicubic").mean() - 0.5) < 0.06


def test_settings_of_one_augmentation_do_not_move_the_draws_of_another(tiles, spec):
    """The crops of a recipe stay the same when erasing is switched on, so that recipes can be compared."""
    plain = batches(loader(tiles, spec, AugmentSettings(crop="resized", flip=0.5)))[0].images["student"]
    erased = batches(loader(tiles, spec, AugmentSettings(crop="resized", flip=0.5, erase=0.5)))[0].images["student"]
    same = (plain == erased).flatten(1).float().mean(1)
    assert (same > 0.6).all()
    assert 0 < (same == 1).sum() < len(same)
