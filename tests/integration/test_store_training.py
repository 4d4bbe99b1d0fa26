"""A student that is taught from a store goes the way of one whose teacher is asked in every step."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from crossdistill.errors import UnsuitablePair
from crossdistill.registry import METHODS
from crossdistill.runs.objective import build_method, resolve_method
from crossdistill.store import Keep, Store, StoreWriter
from crossdistill.teachers import StoredEnsemble, StoredTeacher, stored_teacher
from samples import image_folder, stores

PLAIN = ("data.augment.crop=pad", "data.augment.flip=0.5")
MIXED = (
    *("data.augment.rand_augment=rand-m9-mstd0.5-inc1", "data.augment.color_jitter=0.3", "data.augment.erase=0.5"),
    *("data.augment.mixup=0.8", "data.augment.cutmix=1.0", "data.augment.crop=resized"),
)
TEACHING = [record.name for record in METHODS if record.value.needs]


@pytest.fixture(scope="module")
def networks():
    torch.set_num_threads(1)
    return {kind: stores.network(kind) for kind in stores.NETWORKS} | {"three": stores.network("vit", 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of three classes, of which the last has a quarter of the images of the others."""
    root = image_folder.make(tmp_path_factory.mktemp("images"), ["ant", "bee", "cat"], num_images=24)
    for path in sorted((root / "train" / "cat").iterdir())[6:]:
        path.unlink()
    return root


@pytest.fixture(scope="module")
def made(networks, folder, tmp_path_factory):
    """The parts of a case's runs, from a store and with the live teacher; made when they are first asked for."""
    root, found = tmp_path_factory.mktemp("stores"), {}
    pictures = (f"data.source=folder:{folder}", "data.limit_train=null", "train.batch_size=8")
    cases = {
        "plain": (["cnn"], PLAIN),
        "mixed": (["cnn"], MIXED),
        "two": (["cnn", "vit"], MIXED),
        "folder": (["three"], (*pictures, *MIXED)),
        "balanced": (["three"], (*pictures, *PLAIN, "data.sampling=class_balanced")),
        "unlabelled": (["cnn"], (*MIXED, "data.labels_per_class=4", "data.augment.mixup=0")),
        "odd": (["cnn"], (*MIXED, "train.batch_size=25")),
    }

    def of(case):
        if case not in found:
            kinds, overrides = cases[case]
            given = [networks[kind] for kind in kinds]
            path = stores.write(root / case, given, *overrides, embeddings=True)
            stored, live = stores.parts_of(path, *overrides), stores.parts_of(given, *overrides)
            found[case] = SimpleNamespace(path=path, overrides=overrides, stored=stored, live=live)
        return found[case]

    return of


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


CASES = [(method, "mixed") for method in ("kd", "dkd", "dist", "ofa", "rkd", "cc", "crd")]
CASES += [("kd", case) for case in ("plain", "balanced", "unlabelled", "odd")]
CASES += [pytest.param("kd", "folder", marks=pytest.mark.slow)]
CASES += [(method, "two") for method in ("kd", "rkd", "cc", "crd")]


@pytest.mark.parametrize(("method", "case"), CASES)
def test_from_a_store_every_bit_is_that_of_the_live_teacher_rounded_to_fp16(made, method, case):
    """Batches of the pass are those of the run, so rounding is all that there is between the two."""
    at = made(case)
    losses, weights = stores.train(at.stored, method)
    expected, expected_weights = stores.train(at.live, method, stores.Changed(at.live.teacher, stores.in_fp16))
    assert len(losses) == stores.EPOCHS * at.stored.train_loader.steps_per_epoch >= 6
    assert losses == expected
    assert same(weights, expected_weights)


def by_the_largest_error(sign):
    """As far off as fp16 may be, in a direction of its own for each number."""
    random = torch.Generator().manual_seed(17)

    def off(values, size):
        error = 2**-11 * size.abs() + 2**-25  # half a unit in the last of fp16's 11 digits, or in its smallest number
        return values + sign * error * torch.randint(0, 2, values.shape, generator=random).mul(2).sub(1)

    def change(outputs):
        logits, embedding = outputs.logits, outputs.embedding
        if logits is not None:
            logits = off(logits, logits.max(dim=1, keepdim=True).values - logits)
        return replace(outputs, logits=logits, embedding=None if embedding is None else off(embedding, embedding))

    return change


def apart(one, other):
    """Length of the difference of weights."""
    return sum(float((tensor - other[name]).double().square().sum()) for name, tensor in one.items()) ** 0.5


def furthest(one, other):
    """Largest difference of a loss in any step."""
    return max(abs(a[name] - b[name]) for a, b in zip(one, other, strict=True) for name in b)


@pytest.mark.parametrize("method", ["kd", "ofa", "rkd"])
def test_the_live_teachers_way_is_kept_as_closely_as_fp16_allows(made, method):
    """The same run with errors of the largest size that fp16 makes says how far off one may be.

    Their directions are drawn, and so is how much of them averages out. Rounding errors, which are spread evenly up to
    that size, have a third of their variance: twice the larger of two draws is some four standard deviations of theirs.
    """
    at = made("plain")
    losses, weights = stores.train(at.live, method)
    found_losses, found = stores.train(at.stored, method)
    off = [stores.train(at.live, method, stores.Changed(at.live.teacher, by_the_largest_error(s))) for s in (1, -1)]
    assert 0 < furthest(found_losses, losses) <= 2 * max(furthest(run[0], losses) for run in off)
    assert 0 < apart(found, weights) <= 2 * max(apart(run[1], weights) for run in off)
    assert apart(found, weights) < 0.01 * apart(weights, at.live.student.state_dict())


@pytest.mark.parametrize("case", ["plain", "two"])
@pytest.mark.parametrize("method", TEACHING)
def test_every_method_on_logits_or_embeddings_trains_from_a_store_and_the_others_are_refused(made, method, case):
    at = made(case)
    assert type(at.stored.teacher) is (StoredEnsemble if case == "two" else StoredTeacher)
    if build(method, at.live).needs <= {"logits", "embedding"}:
        losses, _ = stores.train(at.stored, method, max_steps=2)
        expected, _ = stores.train(at.live, method, max_steps=2)
        assert [set(step) for step in losses] == [set(step) for step in expected]
        assert len(losses) == 2
        assert all(torch.tensor(list(step.values())).isfinite().all() for step in losses)
        return
    with pytest.raises(UnsuitablePair, match=r"\(stored\), which holds .*\n.*\n.*the live teacher") as refused:
        build(method, at.stored)
    assert serving(refused) == {"kd", "dkd", "dist", "ofa", "rkd", "cc", "crd", "rsd", "hybrid"}


def build(method, parts):
    return build_method(*resolve_method(method, {}), parts.student, parts.teacher, num_classes=10)


def serving(refused):
    return set(refused.value.action.partition("methods that serve this pair: ")[2].split(", "))


def test_without_embeddings_a_method_that_needs_them_says_how_to_store_them(made, tmp_path):
    stored = made("plain").stored
    bare = replace(stored.teacher.store.manifest, keep=Keep(), embedding_dims=())
    StoreWriter.open(tmp_path, bare)
    teacher = stored_teacher(Store.open(tmp_path))
    with pytest.raises(UnsuitablePair, match=r"which holds logits\n[\s\S]*--embeddings") as refused:
        build("crd", replace(stored, teacher=teacher))
    assert serving(refused) == {"kd", "dkd", "dist", "ofa"}
