"""A student that is taught from a store goes the way of one whose teacher is asked in every step."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from crossdistill.contracts import Outputs
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
CASES += [("kd", case) for case in ("plain", "balanced", "unlabelled")]
CASES += [pytest.param("kd", case, marks=pytest.mark.slow) for case in ("folder", "odd")]
CASES += [("rkd", "two")]
CASES += [pytest.param(method, "two", marks=pytest.mark.slow) for method in ("kd", "cc", "crd")]


@pytest.mark.parametrize(("method", "case"), CASES)
def test_from_a_store_every_bit_is_that_of_the_live_teacher_rounded_to_fp16(made, method, case):
    """Batches of the pass are those of the run, so rounding is all that there is between the two."""
    at = made(case)
    losses, weights = stores.train(at.stored, method)
    expected, expected_weights = stores.train(at.live, method, stores.Changed(at.live.teacher, stores.in_fp16))
    assert len(losses) == stores.EPOCHS * at.stored.train_loader.steps_per_epoch >= 6
    assert losses == expected
    assert max(sum(step.values()) for step in losses) < 2 * sum(losses[0].values()), "the student learns"
    assert same(weights, expected_weights)


def largest_errors(outputs):
    """What the codec states, of each logit and of each number of the embedding."""
    logits, embedding = outputs.logits, outputs.embedding
    below = logits.max(dim=1, keepdim=True).values - logits
    return 2**-11 * below + 2**-25 + 2**-23 * (below + logits.abs()), 2**-11 * embedding.abs() + 2**-25


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "ofa", "rkd", "cc"])
def test_a_loss_is_off_by_no_more_than_the_codecs_error_explains(made, method):
    """In every step, at the same student: by the loss's own gradient g, and the largest error E of each number.

    Independent errors of mean zero within E move the loss, to first order, by more than 5 sqrt(sum (g E)^2) with a
    probability below 2 exp(-25 / 2) < 1e-5 a step (Hoeffding). A loss is itself rounded, which the other term is for.
    """
    at = made("plain")
    torch.manual_seed(1)
    student = at.live.student.eval()
    loss = build(method, at.live)
    for parts in (at.live, at.stored):
        parts.teacher.passes_on = parts.teacher.holds
    steps = list(zip(at.stored.train_loader.epoch(0), at.live.train_loader.epoch(0), strict=True))
    assert len(steps) == 3
    for (stored_batch,), (batch,) in steps:
        with torch.no_grad():
            seen = student(batch.images["student"])
        live, stored = at.live.teacher.signals(batch), at.stored.teacher.signals(stored_batch)
        numbers = [live.logits.requires_grad_(), live.embedding.requires_grad_()]

        def total(logits, embedding, *, seen=seen, batch=batch):
            return sum(loss(seen, Outputs(logits=logits, embedding=embedding), batch).values())

        expected = total(*numbers)
        gradients = torch.autograd.grad(expected, numbers, allow_unused=True)
        expected = float(expected.detach())
        pairs = zip(gradients, largest_errors(live), strict=True)
        square = sum(float((g.double() * e.detach().double()).square().sum()) for g, e in pairs if g is not None)
        with torch.no_grad():
            off = abs(float(total(stored.logits, stored.embedding)) - expected)
        assert square > 0
        assert off <= 5 * square**0.5 + 2**-22 * abs(expected)


def apart(one, other):
    """Length of the difference of weights."""
    return sum(float((tensor - other[name]).double().square().sum()) for name, tensor in one.items()) ** 0.5


@pytest.mark.parametrize("method", ["kd", "ofa", "rkd"])
def test_the_live_teachers_way_is_kept_as_closely_as_fp16_allows(made, method):
    """Closer than a teacher rounded to 9 binary digits keeps it, less closely than one of 13; fp16 has 11."""
    at = made("plain")
    weights = stores.train(at.live, method)[1]

    def off(bits):
        teacher = stores.Changed(at.live.teacher, partial(stores.rounded_to, bits))
        return apart(stores.train(at.live, method, teacher)[1], weights)

    assert 0 < off(13) < apart(stores.train(at.stored, method)[1], weights) < off(9)


@pytest.mark.parametrize("case", ["plain", pytest.param("two", marks=pytest.mark.slow)])
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
