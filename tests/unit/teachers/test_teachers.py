"""Teachers answer alike, never change, and are checked before anything is trained on them."""

import copy
import gc
import math
import weakref
from dataclasses import replace

import pytest
import torch

from crossdistill.contracts import Batch, Outputs, Teacher
from crossdistill.errors import InputError, UnsuitablePair
from crossdistill.teachers import EnsembleTeacher, FrozenTeacher, check_above_chance, check_signals, fingerprint
from samples.training import Alone, Match, SmallNet, TensorLoader, spec_of


@pytest.fixture
def batch():
    return TensorLoader().evaluation()[0]


class Fixed(torch.nn.Module):
    """The same logits whatever it sees."""

    def __init__(self, logits, spec=None):
        super().__init__()
        self.logits = torch.as_tensor(logits)
        self.spec = spec or spec_of("fixed", self.logits.shape[1])

    def forward(self, images):
        return Outputs(logits=self.logits)


def test_a_frozen_teacher_never_leaves_eval_mode(batch):
    teacher = FrozenTeacher(SmallNet(dropout=0.5, batch_norm=True).train())
    before = copy.deepcopy(teacher.state_dict())
    torch.nn.ModuleList([teacher]).train()
    one, other = teacher.train().signals(batch), teacher.signals(batch)
    assert torch.equal(one.logits, other.logits)
    teacher.model.train()  # by somebody who holds the network itself
    assert torch.equal(teacher.signals(batch).logits, one.logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())


def test_a_frozen_teacher_gives_no_gradient(batch):
    teacher = FrozenTeacher(SmallNet())
    outputs = teacher.signals(batch)
    assert not outputs.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_frozen_teacher_sees_its_own_view():
    images = {f"teacher{i}": torch.full((2, 1, 6, 6), float(i)) for i in range(2)}
    batch = Batch(images, torch.zeros(2).long(), torch.arange(2))
    net = SmallNet()
    assert torch.equal(FrozenTeacher(net, view="teacher1").signals(batch).logits, net(images["teacher1"]).logits)


@pytest.mark.parametrize("teacher", [FrozenTeacher(SmallNet()), EnsembleTeacher([FrozenTeacher(SmallNet())])])
def test_all_keep_the_contract(teacher):
    assert isinstance(teacher, Teacher)


def test_the_ensemble_is_the_weighted_mean_of_probabilities(batch):
    nets = [SmallNet(seed=seed) for seed in range(3)]
    teacher = EnsembleTeacher([FrozenTeacher(net) for net in nets], [1.0, 2.0, 5.0])
    outputs = teacher.signals(batch)
    each = [net(batch.images["teacher0"]).logits.double().softmax(1) for net in nets]
    mean = (1 * each[0] + 2 * each[1] + 5 * each[2]) / 8
    torch.testing.assert_close(outputs.logits.exp(), mean.float())
    torch.testing.assert_close(outputs.logits.exp().sum(1), torch.ones(20))
    assert outputs.embedding is None
    assert outputs.stages is None
    assert teacher.spec.num_parameters == 300


def test_an_ensemble_passes_on_of_each_teacher_what_it_is_asked_for_and_no_more(batch):
    nets = [SmallNet(seed=seed) for seed in range(2)]
    teacher = EnsembleTeacher([FrozenTeacher(net) for net in nets])
    assert teacher.holds == {"logits", "embedding", "stages", "modules"}
    for signals in ({"logits"}, {"embedding"}, {"logits", "embedding", "stages", "modules"}, set()):
        teacher.passes_on = frozenset(signals)
        for net, member in zip(nets, teacher.signals(batch).members, strict=True):
            own = net(batch.images["teacher0"])
            for name in ("logits", "embedding"):
                kept = getattr(member, name)
                assert torch.equal(kept, getattr(own, name)) if name in signals else kept is None
            assert member.stages is None


class Staged(SmallNet):
    """Two stages, of which somebody counts how many are still there, and whether it runs in inference mode."""

    def __init__(self, **changes):
        super().__init__(**changes)
        self.alive, self.inference = weakref.WeakSet(), None

    def forward(self, images):
        self.inference = torch.is_inference_mode_enabled()
        stages = tuple(images.flatten(1) * factor for factor in (1.0, 2.0))
        for stage in stages:
            self.alive.add(Watched(stage))
        return replace(super().forward(images), stages=stages)


class Watched:
    """Lives as long as a tensor's storage does, which weak references to tensors do not show."""

    def __init__(self, tensor):
        tensor.watched = self


SETS = [set(), {"logits"}, {"embedding"}, {"logits", "embedding"}, {"stages"}, {"logits", "stages"}, {"modules"}]


@pytest.mark.parametrize("signals", SETS, ids=lambda signals: "+".join(sorted(signals)) or "none")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_frozen_teacher_passes_on_what_is_asked_for_as_tensors_one_can_train_with(batch, signals, precision):
    teacher = FrozenTeacher(Staged())
    everything = teacher.signals(batch)
    assert len(everything.stages) == 2
    assert not teacher.model.inference
    teacher.passes_on = frozenset(signals)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        outputs = teacher.signals(batch)
    assert outputs.logits.dtype == precision
    assert teacher.model.inference == signals.isdisjoint({"stages", "modules"})
    assert (outputs.embedding is not None) == ("embedding" in signals)
    assert (outputs.stages is not None) == ("stages" in signals)
    tolerance = {"rtol": 0, "atol": 0} if precision == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(outputs.logits.float(), everything.logits, **tolerance)
    for tensor in (outputs.logits, outputs.embedding, *(outputs.stages or ())):
        if tensor is not None:
            weight = torch.ones_like(tensor, requires_grad=True)
            (weight * tensor).sum().backward()  # an inference tensor could not be saved for this
            assert torch.equal(weight.grad, tensor)


@pytest.mark.parametrize("signals", [{"logits"}, {"logits", "stages"}])
def test_stages_that_nobody_asks_for_are_free_when_the_teacher_has_answered(batch, signals):
    teacher = FrozenTeacher(Staged())
    teacher.passes_on = frozenset(signals)
    outputs = teacher.signals(batch)
    gc.collect()
    assert len(teacher.model.alive) == (2 if "stages" in signals else 0)
    assert outputs.logits is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ensemble_is_finite_at_extreme_logits(batch, dtype):
    """One member is sure of class 0, the other of class 1; the third class is impossible for both."""
    members = [Fixed(torch.tensor([row], dtype=dtype)) for row in ([300.0, -300.0, -1e4], [-300.0, 300.0, -1e4])]
    logits = EnsembleTeacher([FrozenTeacher(member) for member in members], [3, 1]).signals(batch).logits
    assert logits.isfinite().all()
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.exp(), torch.tensor([[0.75, 0.25, 0.0]]))


@pytest.mark.parametrize(
    ("specs", "weights", "words"),
    [
        ((spec_of("a", 3), spec_of("b", 4)), None, "a with 3 classes and b with 4"),
        ((spec_of("a", 2, ("cat", "dog")), spec_of("b", 2, ("dog", "cat"))), None, "class 0 is 'cat' for a and 'dog'"),
        ((spec_of("a"), spec_of("b")), [1.0], "2 teachers with weights"),
        *(
            ((spec_of("a"), spec_of("b")), [1.0, weight], "2 teachers with weights")
            for weight in (0.0, -1.0, -3.0, math.inf, math.nan)
        ),
        ((spec_of("a"), spec_of("b")), [1e308, 1e308], "2 teachers with weights"),  # the sum is not finite
        ((spec_of("a"), spec_of("b")), [1e308, 1e-308], "2 teachers with weights"),  # the share is 0
        ((spec_of("a"), spec_of("b")), [-1.0, -1.0], "2 teachers with weights"),
        ((spec_of("a"),), [0.0], "1 teacher with weights"),
        ((), None, "0 teachers"),
    ],
)
def test_teachers_that_do_not_fit_together_are_refused(specs, weights, words):
    teachers = [FrozenTeacher(Fixed(torch.zeros(1, spec.num_classes), spec)) for spec in specs]
    with pytest.raises(InputError, match=words):
        EnsembleTeacher(teachers, weights)


def test_the_fingerprint_names_the_weights_and_nothing_else():
    net = SmallNet(seed=1, batch_norm=True)
    name = FrozenTeacher(net).fingerprint()
    assert len(name) == 64
    assert FrozenTeacher(copy.deepcopy(net), view="teacher7").fingerprint() == name
    half = copy.deepcopy(net).to(torch.bfloat16)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        moved.head.bias[0] += 1e-6
    assert len({name, fingerprint(half), fingerprint(moved), fingerprint(SmallNet(seed=2, batch_norm=True))}) == 4
    one, other = FrozenTeacher(net), FrozenTeacher(moved)
    ensembles = [EnsembleTeacher([one, other]), EnsembleTeacher([other, one]), EnsembleTeacher([one, other], [1, 2])]
    assert len({ensemble.fingerprint() for ensemble in ensembles}) == 3
    assert EnsembleTeacher([one, other], [2, 4]).fingerprint() == ensembles[2].fingerprint()


def test_a_method_that_needs_more_than_the_teacher_holds_is_refused_at_build_time():
    frozen, stored = FrozenTeacher(SmallNet()), FrozenTeacher(SmallNet(name="stored"))
    stored.holds = frozenset({"logits"})
    check_signals(Match, frozen)
    check_signals(Match, EnsembleTeacher([frozen, frozen]))
    check_signals(Alone, EnsembleTeacher([stored]))
    for teacher in (stored, EnsembleTeacher([frozen, stored])):
        with pytest.raises(UnsuitablePair, match=r"method Match, which needs embedding, logits, and teacher stored,"):
            check_signals(Match, teacher)


@pytest.mark.parametrize(
    ("accuracy", "num_samples", "num_classes", "sound"),
    [
        # Chance 0.1 with n = 900: one standard error is exactly 0.01, so the line is at 0.13.
        (0.1299, 900, 10, False),
        (0.1301, 900, 10, True),
        (0.0, 900, 10, False),
        (0.13, 9_000_000, 10, True),
        (0.55, 100, 2, False),
        (0.66, 100, 2, True),
        (1.0, 10, 1, True),
    ],
)
def test_a_teacher_at_chance_is_refused(accuracy, num_samples, num_classes, sound):
    if sound:
        assert check_above_chance(accuracy, num_samples, num_classes, allow=False) is None
        return
    with pytest.raises(InputError, match="allow_untrained_teacher=true; --dry-run only warns"):
        check_above_chance(accuracy, num_samples, num_classes, allow=False)
    assert "nothing to teach" in check_above_chance(accuracy, num_samples, num_classes, allow=True)
