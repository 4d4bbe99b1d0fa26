"""Fine-tuning with few labels: published settings, which images, how it starts, and what it reports."""

import numpy as np
import pytest
import safetensors.torch
import torch

from crossdistill.engine import fit
from crossdistill.engine.progress import Quiet
from crossdistill.errors import InputError, Interrupted
from crossdistill.models import build
from crossdistill.models.cutter import classifier_names
from crossdistill.runs import evaluate
from crossdistill.runs.compose import compose
from crossdistill.runs.plan import make_plan
from crossdistill.selfsup import semi
from crossdistill.selfsup.evaluation import Subject
from crossdistill.selfsup.semi import semi_supervised
from samples import image_folder
from samples.training import Stop


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network with a classifier of its own, which is not zero, as after pretraining with a probe."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "ten.safetensors"
    safetensors.torch.save_file(build("timm/test_resnet", num_classes=10, image_size=32).net.state_dict(), path)
    return path


@pytest.fixture
def subject(weights):
    def make(*overrides, **changes):
        given = {"model": f"timm/test_resnet@{weights}", "data": "digits", "image_size": 32, "device": "cpu"}
        return Subject(**{**given, **changes}, overrides=overrides)

    return make


@pytest.fixture
def planned(monkeypatch, subject):
    """The settings of a fine-tuning, which is not carried out."""

    def settings(*overrides, changes=None, **how):
        seen = {}

        def execute(plan, out, **options):
            seen["plan"] = plan
            return {"dry_run": {}}

        monkeypatch.setattr(semi, "execute", execute)
        semi_supervised(subject(*overrides, **(changes or {})), None, dry_run=True, **how)
        return seen["plan"].settings

    return settings


@pytest.mark.parametrize(("share", "epochs", "milestones"), [(0.01, 40, (24, 32)), (0.1, 20, (12, 16))])
def test_settings_are_those_published(planned, share, epochs, milestones):
    """Section 5.1 of the specification."""
    train = planned(share=share).train
    assert (train.epochs, train.milestones, train.decay_rate) == (epochs, milestones, 0.2)
    assert (train.lr, train.classifier_lr, train.weight_decay, train.batch_size) == (2e-4, 0.5, 0.0, 256)
    assert (train.optimizer, train.momentum, train.warmup_epochs) == ("momentum", 0.9, 0)


def test_what_is_given_wins(planned):
    settings = planned("train.lr=0.1", "data.eval_crop_pct=0.5", share=0.1, batch_size=16)
    assert (settings.train.lr, settings.data.eval_crop_pct, settings.train.batch_size) == (0.1, 0.5, 16)


def test_a_share_of_each_class_and_at_least_one(planned):
    """Of 1,437 digits."""
    everything = compose(planned(share=1.0)).splits.train.targets
    for share, expected in ((0.1, 144), (0.01, 14), (1e-6, 10)):
        parts = compose(planned(share=share))
        assert parts.num_labelled == parts.num_train == expected
        counts = np.bincount(everything[parts.train_loader.ids], minlength=10)
        exact = share * np.bincount(everything)
        assert (counts >= np.maximum(1, np.floor(exact))).all()
        assert (counts <= np.maximum(1, np.ceil(exact))).all()


def test_a_share_is_of_the_images_that_are_left(planned):
    """A run that was pretrained on some of the images brings that limit with its data."""
    assert planned("data.limit_train=200", share=0.1).data.limit_train == 20
    assert planned("data.first_per_class=30", share=0.1).data.limit_train == 30


def test_a_larger_share_holds_the_smaller(planned):
    small, large = (set(compose(planned(share=share)).train_loader.ids.tolist()) for share in (0.02, 0.1))
    assert small < large


def test_listed_images_and_no_others(planned, tmp_path):
    """As a run that was pretrained on some images brings its own limit, which a list does not heed."""
    data = image_folder.make(tmp_path / "data", ["ant", "bee"], num_images=10)
    (tmp_path / "list.txt").write_text("bee/3.png\nant/1.png\nant/7.png\n")
    changes = {"data": f"folder:{data}", "model": "timm/test_resnet", "allow_random": True}
    settings = planned("data.limit_train=2", changes=changes, images=tmp_path / "list.txt")
    parts = compose(settings)
    paths = [parts.splits.train.describe(index) for index in parts.train_loader.ids]
    assert [path.removeprefix(f"{data}/train/") for path in paths] == ["ant/1.png", "ant/7.png", "bee/3.png"]
    assert settings.train.epochs == 20  # 15 % is nearer to 10 % than to 1 %
    with pytest.raises(InputError, match="drop one"):
        planned(changes=changes, images=tmp_path / "list.txt", share=0.1)


def test_the_trunk_starts_as_pretrained_and_the_classifier_at_zero(planned, weights):
    student = compose(planned()).student
    saved = safetensors.torch.load_file(weights)
    heads = {f"{name}.{part}" for name in classifier_names(student.net) for part in ("weight", "bias")}
    assert heads < set(saved)
    for name, value in student.net.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if name in heads else saved[name]), name


def test_random_weights_only_where_they_are_asked_for(planned):
    with pytest.raises(InputError, match="whose weights would be random"):
        planned(changes={"model": "timm/test_resnet"})
    settings = planned(changes={"model": "timm/test_resnet", "allow_random": True})
    assert settings.student.init is None
    assert not settings.student.new_classifier


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_is_a_share(planned, share):
    with pytest.raises(InputError, match="a share above 0 and up to 1"):
        planned(share=share)


def test_images_without_classes_are_refused(planned, tmp_path):
    with pytest.raises(InputError, match="images with classes"):
        planned("data.unlabelled=true", changes={"data": f"folder:{tmp_path}"})


def test_top_5_is_reported_beside_top_1(subject, tmp_path):
    """Both are what the trained run gives when it is evaluated."""
    quick = ("train.epochs=2", "train.lr=0.02", "train.milestones=[1]")
    results = semi_supervised(subject(*quick), tmp_path / "run", share=0.05, seeds=(0, 1), quiet=True)
    found = results["semi_supervised"]
    assert found["num_labels"] == 72
    by_seed = [evaluate(tmp_path / "run" / run["folder"], device="cpu") for run in results["rows"][0]["runs"]]
    assert len(by_seed) == 2
    for figure in ("top1", "top5"):
        assert found[f"{figure}_mean"] == pytest.approx(sum(one[figure] for one in by_seed) / 2)
    assert (tmp_path / "run" / "report.html").is_file()
    again = semi_supervised(subject(*quick), tmp_path / "run", share=0.05, seeds=(0, 1), resume=True, quiet=True)
    assert again["semi_supervised"] == found
    with pytest.raises(InputError, match="limit_train"):
        semi_supervised(subject(*quick), tmp_path / "run", share=0.1, seeds=(0, 1), resume=True, quiet=True)


def test_a_log_of_other_images_gives_no_top_5(subject, tmp_path):
    """With the best epoch selected, the log is of held-out images."""
    quick = ("train.epochs=2", "train.select=best", "train.milestones=[1]")
    results = semi_supervised(subject(*quick), tmp_path / "run", share=0.05, quiet=True)
    assert "top5_mean" not in results["semi_supervised"]
    assert results["semi_supervised"]["top1_mean"] == results["rows"][0]["top1_mean"]


def test_two_rates_and_milestones_survive_a_resume_bit_for_bit(planned, tmp_path):
    """Nine images a step, so that an epoch has several; stopped between the two milestones."""
    settings = planned("train.epochs=3", "train.milestones=[1,2]", "train.lr=0.05", share=0.02, batch_size=9)

    def train(out, reporter=None):
        parts = compose(make_plan(settings.model_dump(exclude={"seed"})).settings)
        how = {"settings": parts.train, "seed": 0, "device": "cpu", "out": out, "reporter": reporter or Quiet()}
        fit(parts.student, parts.method, None, parts.train_loader, parts.test_loader, **how)
        return parts.student.state_dict()

    whole = train(None)
    with pytest.raises(Interrupted):
        train(tmp_path / "run", Stop(4))
    resumed = train(tmp_path / "run")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
