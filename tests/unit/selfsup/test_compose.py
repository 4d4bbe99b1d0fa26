"""A pretraining run from its settings: what is built for each family, what moves, and what is refused."""

import pytest
import torch

from crossdistill.errors import InputError
from crossdistill.models import build
from crossdistill.models.cutter import classifier_names
from crossdistill.selfsup.compose import accepts, compose
from crossdistill.selfsup.settings import load_settings
from crossdistill.teachers import MovingAverageTeacher
from samples.pretraining import FAMILIES, QUICK, settings_of, state_of, textures, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return textures(tmp_path_factory.mktemp("textures"))


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_from_its_own_average(data, family):
    model, side, overrides = FAMILIES[family]
    settings = settings_of(data, *overrides, model=model, image_size=side)
    before = state_of(compose(settings))
    parts, result = train(settings, examine=False)
    assert isinstance(parts.teacher, MovingAverageTeacher)
    after = state_of(parts)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert any(name.startswith("teacher.") for name in moved)
    assert any("vocabulary.words" in name for name in moved)
    trained = {f"student.{name}" for name, value in parts.student.named_parameters() if value.requires_grad}
    assert trained <= moved, sorted(trained - moved)
    assert result.steps == 2 * parts.train_loader.steps_per_epoch


def test_the_classifier_is_zero_and_frozen(data):
    parts = compose(settings_of(data))
    (head,) = classifier_names(parts.student.net)
    parameters = list(parts.student.net.get_submodule(head).parameters())
    assert parameters
    assert all(not one.requires_grad and not one.any() for one in parameters)


def test_labels_are_never_read_in_training(data):
    parts = compose(settings_of(data))
    (step, *_) = parts.train_loader.epoch(0)
    assert all((batch.target == -1).all() for batch in step)


def test_sizes_follow_the_image_size_and_networks_of_one_size_get_all_views_in_it(data):
    parts = compose(settings_of(data))
    assert (parts.settings.views.crop_size, parts.settings.views.patch_size) == (23, 14)
    mixer = compose(settings_of(data, model="timm/mixer_tiny"))
    assert (mixer.settings.views.crop_size, mixer.settings.views.patch_size) == (32, 32)
    assert any("takes images of 32 px only" in warning for warning in mixer.warnings)
    with pytest.raises(InputError, match="takes no other size"):
        compose(settings_of(data, "views.crop_size=24", model="timm/mixer_tiny"))
    assert accepts(parts.student, 17)
    assert not accepts(mixer.student, 24)


def test_a_given_teacher_of_another_family_stays_as_it_is(data):
    torch.manual_seed(0)
    vit = build("timm/test_vit", num_classes=7, image_size=48)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    settings = settings_of(data, teacher={"name": "teacher:StagedModel", "image_size": 48})
    parts, _ = train(settings, examine=False, modules={"teacher:StagedModel": vit})
    assert not parts.follows
    assert parts.teacher.spec.num_classes == 7
    assert {level.vocabulary.words.shape[1] for _, level in parts.method.numbered()} == {64}
    for name, value in parts.teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_given_teacher_must_be_trained(data):
    with pytest.raises(InputError, match="whose weights would be random"):
        compose(settings_of(data, teacher={"name": "timm/test_vit", "image_size": 48}))


@pytest.mark.parametrize("override", ["momentum.start=0.5", "probe.keep=teacher"])
def test_a_given_teacher_is_not_averaged_and_not_kept(data, override):
    with pytest.raises(InputError, match="stays as it is and where it is"):
        settings_of(data, override, teacher={"name": "timm/test_vit@pretrained", "image_size": 48})


def test_a_bank_that_is_cut_is_told(data):
    parts = compose(settings_of(data, "probe.bank=30", "probe.neighbours=40"))
    told = " ".join(parts.warnings)
    assert "measured with 30 of 72 labelled training images" in told
    assert "all 30 labelled training images vote" in told


def test_one_image_at_a_time_is_refused_where_batches_are_normalised(data):
    with pytest.raises(InputError, match="two images or more at a time"):
        train(settings_of(data, "train.batch_size=1", model="timm/resnet18"), examine=False, max_steps=1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("method.name=kd",), "a method that pretrains: bow"),
        (("method.levels=[5]",), "numbers from 1 to 4"),
        (("train.select=best",), "reports its last epoch"),
        (("train.label_smoothing=0.1",), "reads no label"),
        (("data.val_share=0.2",), "reads no label"),
        (("method.inverse_delta=0",), "inverse_delta above 0"),
        (("train.cross_entropy_weight=1",), "reads no label"),
        (("data.labels_per_class=2",), "reads no label"),
        (("data.augment.flip=0.1",), "views are set by views.KEY=VALUE"),
        (("train.schedule=cosin",), "train.schedule"),
        (("method.border=3",), "whose map has 2x2 locations"),
        (("method.words=9",), "num_words"),
        (("views.crops=0", "views.patches=0"), "a view for the student"),
        (("views.crop_size=96",), "smaller than half of views.crop_size=96"),
        (("views.patch_size=40",), "views.patch_size up to views.patch_base"),
        (("method.num_words=1",), "num_words of 2 or more"),
        (("train.optimizer=sdg",), "optimiser name of timm"),
        (("momentum.start=2",), "momentum.start"),
        (("view.crops=2",), "did you mean"),
    ],
)
def test_refusals(data, overrides, words):
    with pytest.raises(InputError, match=words):
        compose(settings_of(data, *overrides))


def test_a_vocabulary_smaller_than_a_batch_is_told_and_works(data):
    parts, _ = train(settings_of(data, "method.num_words=5"), examine=False, max_steps=2)
    assert any("a vocabulary of 5 words and 16 images a step" in warning for warning in parts.warnings)
    assert all(level.vocabulary.is_full for _, level in parts.method.numbered())


def test_images_without_labels(tmp_path):
    folder = textures(tmp_path / "flat", labelled=False)
    settings = load_settings(
        {
            "student": {"name": "timm/test_resnet", "image_size": 32},
            "data": {"source": f"folder:{folder}", "unlabelled": True},
        },
        QUICK,
    )
    parts, result = train(settings, max_steps=2)
    assert parts.exam is None
    assert len(parts.train_loader.ids) == 72
    assert "top1" not in result.metrics
    assert any("no labels" in warning for warning in parts.warnings)


def test_first_images_of_each_class(data):
    parts = compose(settings_of(data, "data.first_per_class=3"))
    assert len(parts.train_loader.ids) == 9
