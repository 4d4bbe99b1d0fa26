"""Parts of a run fit together: first weights, who sees which images, what selects, and whose modules are touched."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import crossdistill
from crossdistill import settings
from crossdistill.contracts import UNLABELLED
from crossdistill.engine import total_steps
from crossdistill.errors import InputError
from crossdistill.registry import METHODS
from crossdistill.runs import make_plan
from crossdistill.runs.compose import compose, model_of
from samples import image_folder


class TinyNet(nn.Module):
    """Not of timm: grey images, one convolution, a linear head."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


STUDENT = {"name": "timm/test_resnet", "image_size": 16}
TEACHERS = [STUDENT]
METHOD_NAMES = [record.name for record in METHODS]
TEACHING = [record.name for record in METHODS if record.value.needs]


def parts_of(method, *overrides, seed=0, modules=None, student=STUDENT, teachers=TEACHERS):
    tree = {"student": student, "data": {"source": "digits"}, "method": {"name": method}}
    tree["teachers"] = teachers if METHODS.get(method).value.needs else []
    return compose(make_plan(tree, overrides, seeds=(seed,)).settings, modules)


def state_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_seed_gives_the_student_the_same_first_weights_whatever_trains_it():
    first = state_of(parts_of(METHOD_NAMES[0]).student)
    for method in METHOD_NAMES[1:]:
        assert equal(state_of(parts_of(method).student), first), method
    ensemble = [*TEACHERS, {"name": "timm/test_vit", "image_size": 16}]
    assert equal(state_of(parts_of("kd", teachers=ensemble).student), first)
    assert not equal(state_of(parts_of("kd", seed=1).student), first)


def test_a_seed_gives_the_method_the_same_first_weights_whatever_the_student_drew():
    first = state_of(parts_of("ofa").method)
    assert first
    assert equal(state_of(parts_of("ofa").method), first)
    assert not equal(state_of(parts_of("ofa", seed=1).method), first)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_only_a_student_with_a_teacher_sees_images_without_a_label(method):
    parts = parts_of(method, "data.labels_per_class=3", "train.batch_size=2000")
    targets = parts.splits.train.targets
    (batches,) = parts.train_loader.epoch(0)
    seen = torch.cat([batch.sample_id for batch in batches]).numpy()
    known = torch.cat([batch.target for batch in batches]).numpy()
    labelled = known != UNLABELLED
    assert parts.num_labelled == labelled.sum() == 30
    assert np.array_equal(known[labelled], targets[seen[labelled]])
    assert np.array_equal(np.bincount(known[labelled]), [3] * 10)
    assert len(seen) == (len(targets) if method in TEACHING else 30)


def test_the_labels_depend_on_the_seed_alone():
    def labelled(method, seed):
        loader = parts_of(method, "data.labels_per_class=3", "train.batch_size=2000", seed=seed).train_loader
        (batch,) = next(loader.epoch(0))
        return set(batch.sample_id[batch.target != UNLABELLED].tolist())

    assert labelled("none", 0) == labelled("kd", 0)
    assert labelled("none", 1) == labelled("kd", 1) != labelled("kd", 0)


def test_the_best_epoch_is_selected_on_training_images_that_do_not_train():
    parts = parts_of("kd", "train.select=best", "data.val_share=0.2", "data.labels_per_class=5")
    train, selection = set(parts.train_loader.ids), set(parts.selection_loader.ids)
    everything = len(parts.splits.train.targets)
    assert not train & selection
    assert len(train | selection) == everything == 1437
    assert len(selection) == round(0.2 * everything)
    shown = next(iter(parts.selection_loader))
    source_targets = parts.splits.train.targets
    assert torch.equal(shown.target, torch.from_numpy(source_targets[shown.sample_id]))  # all labelled, of these images
    assert parts.test_loader is not parts.selection_loader
    assert len(parts.test_loader.ids) == 360


def test_without_selection_epochs_are_measured_on_the_test_images():
    parts = parts_of("kd")
    assert parts.selection_loader is parts.test_loader
    assert len(parts.train_loader.ids) == 1437


@pytest.mark.parametrize(("given", "size"), [([], 128), (["train.device_batch_size=16"], 16)])
def test_no_more_images_are_evaluated_at_once_than_a_device_trains_on(given, size):
    parts = parts_of("kd", "train.batch_size=128", *given)
    assert {loader.batch_size for loader in (parts.test_loader, parts.selection_loader)} == {size}
    assert len(next(iter(parts.test_loader))) == size


OBJECTS = {
    "plain": (lambda: TinyNet(), {"image_size": 8}),
    "timm": (lambda: timm.create_model("test_resnet", num_classes=10), {"image_size": 16}),
    "staged": (lambda: crossdistill.build("timm/test_resnet", num_classes=10, image_size=16), {}),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_modules_are_copied_and_start_from_their_own_weights(kind):
    make, settings = OBJECTS[kind]
    student, teacher = make().train(), make().train()
    before = [state_of(student), state_of(teacher)]
    modules = {"mine": student, "theirs": teacher}
    given = {"student": {"name": "mine", **settings}, "teachers": [{"name": "theirs", **settings}]}
    parts, other = (parts_of("kd", seed=seed, modules=modules, **given) for seed in (0, 1))
    assert equal(state_of(parts.student.net), state_of(getattr(student, "net", student)))
    assert equal(state_of(parts.student), state_of(other.student))
    with torch.no_grad():
        for parameter in [*parts.student.parameters(), *parts.teacher.parameters()]:
            parameter.zero_()
    parts.student.eval()
    assert [equal(state_of(one), was) for one, was in zip((student, teacher), before, strict=True)] == [True, True]
    assert all(module.training for one in (student, teacher) for module in one.modules())
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert not equal(state_of(other.student), state_of(parts.student))


def test_a_module_s_facts_are_measured():
    parts = parts_of("kd", modules={"mine": TinyNet()}, student={"name": "mine", "image_size": 8})
    spec = parts.student.spec
    assert (spec.name, spec.family, spec.num_classes) == ("TinyNet", "cnn", 10)
    assert (spec.input.num_channels, spec.input.image_size) == (1, (8, 8))
    (batch,) = next(parts.train_loader.epoch(0))
    assert batch.images["student"].shape == (128, 1, 8, 8)
    assert batch.images["teacher0"].shape == (128, 3, 16, 16)


def test_a_staged_model_keeps_its_name_and_size():
    staged = crossdistill.build("timm/test_resnet", num_classes=10, image_size=24)
    settings = make_plan({"student": {"name": "mine"}, "data": {"source": "digits"}}).settings
    copied = model_of(settings.student, tuple("0123456789"), {"mine": staged})
    assert (copied.spec.name, copied.spec.input) == ("test_resnet", staged.spec.input)
    assert copied is not staged


def test_a_head_of_another_size_is_refused():
    with pytest.raises(InputError, match="TinyNet, whose output is"):
        parts_of("kd", modules={"mine": TinyNet(7)}, student={"name": "mine", "image_size": 8})


def test_validation_images_of_the_data_are_used_before_training_images_are_given_up(tmp_path):
    image_folder.make(tmp_path, ["dark", "light"], num_images=6, splits=("train", "val", "test"))
    tree = {"student": {"name": "timm/test_resnet", "image_size": 32}, "data": {"source": f"folder:{tmp_path}"}}
    parts = compose(settings.load(tree, ["train.select=best"]))
    assert len(parts.train_loader.ids) == 12
    assert parts.selection_loader is not parts.test_loader
    assert len(parts.selection_loader.ids) == len(parts.test_loader.ids) == 12
    assert parts.splits.validation is not None


def test_a_student_alone_with_few_labels_takes_as_many_steps_as_a_distilled_one():
    few = ("data.labels_per_class=5", "train.epochs=4", "train.batch_size=50", "train.warmup_epochs=1")
    few += ("train.schedule=step", "train.milestones=[1, 3]")
    alone, distilled = parts_of("none", *few), parts_of("kd", *few)
    assert alone.train_loader.steps_per_epoch < distilled.train_loader.steps_per_epoch
    steps = [total_steps(parts.train, parts.train_loader.steps_per_epoch) for parts in (alone, distilled)]
    assert steps[0] == steps[1]
    warmups = [parts.train.warmup_epochs * parts.train_loader.steps_per_epoch for parts in (alone, distilled)]
    assert warmups[0] == pytest.approx(warmups[1])
    for one, other in zip(alone.train.milestones, distilled.train.milestones, strict=True):
        steps = [at * parts.train_loader.steps_per_epoch for at, parts in ((one, alone), (other, distilled))]
        assert steps[0] == pytest.approx(steps[1])
    assert alone.settings.train.epochs == 4, "what is recorded is what was given"


def test_choices_left_open_are_recorded():
    parts = parts_of("kd")
    assert parts.settings.data.augment.crop == "pad"
    assert parts.settings.data.augment.flip == 0.0
    assert parts.settings.student.image_size == parts.student.spec.input.image_size[0]


def test_balanced_sampling_needs_labels():
    with pytest.raises(InputError, match=r"class_balanced with 1337 of 1437 training images unlabelled"):
        parts_of("kd", "data.sampling=class_balanced", "data.labels_per_class=10")
    parts = parts_of("kd", "data.sampling=class_balanced", "data.limit_train=95", "train.batch_size=95")
    batch = next(iter(parts.train_loader.epoch(0)))[0]
    counts = np.bincount(batch.target.numpy(), minlength=10)
    assert counts.max() - counts.min() <= 1


def test_teacher_and_student_see_the_same_mixture_where_it_is_made_changes_nothing():
    mixed = ("data.augment.mixup=0.8", "data.augment.cutmix=1.0", "data.augment.rand_augment=rand-m9-mstd0.5-inc1")
    here, there = (parts_of("ofa", *mixed, f"data.augment_on={where}", "device=cpu") for where in ("cpu", "device"))
    first, second = (next(iter(parts.train_loader.epoch(0)))[0] for parts in (here, there))
    assert first.images["student"] is first.images["teacher0"]
    assert torch.equal(first.images["student"], second.images["student"])
    assert torch.equal(first.target, second.target)
    assert first.target.shape == (len(first), 10)


def test_data_are_told_apart_by_the_names_of_their_files(tmp_path):
    image_folder.make(tmp_path, ["dark", "light"], num_images=6, splits=("train", "val", "test"))

    def identity():
        tree = {"student": {"name": "timm/test_resnet", "image_size": 32}, "data": {"source": f"folder:{tmp_path}"}}
        return compose(settings.load(tree, ["train.select=best"])).identity()

    before = identity()
    assert identity() == before
    (tmp_path / "val" / "dark" / "3.png").rename(tmp_path / "val" / "dark" / "33.png")
    renamed = identity()
    (tmp_path / "train" / "dark" / "5.png").rename(tmp_path / "train" / "dark" / "6.png")
    assert len({one["data_sha256"] for one in (before, renamed, identity())}) == 3


def test_evaluation_shows_as_much_as_is_asked_for(tmp_path):
    image_folder.make(tmp_path, ["dark", "light"])
    data = [f"data.source=folder:{tmp_path}"]
    whole, centre = (parts_of("kd", *data, *more) for more in ((), ("data.eval_crop_pct=0.5",)))
    first, second = (next(iter(parts.test_loader)).images["student"] for parts in (whole, centre))
    assert not torch.equal(first, second)
    assert centre.student.spec.input.crop_pct == 0.5  # and so in what is exported


@pytest.mark.parametrize("method", ["none", "kd"])
def test_images_without_classes_are_refused(method):
    with pytest.raises(InputError, match="images without classes"):
        parts_of(method, "data.source=folder:photos", "data.unlabelled=true")
