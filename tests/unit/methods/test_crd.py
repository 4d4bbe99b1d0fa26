"""CRD: its loss written out, what it remembers, and when."""

import pytest
import torch

from crossdistill.contracts import Batch, Outputs
from crossdistill.engine import fit
from crossdistill.errors import InputError, Interrupted
from crossdistill.methods.crd import CRD
from crossdistill.registry import METHODS
from crossdistill.settings import resolve_options
from crossdistill.teachers import FrozenTeacher
from oracles import embedding_losses as oracle
from oracles import model_specs as specs
from samples.training import NUM_CLASSES, SmallNet, Stop, TensorLoader, settings

STUDENT_DIM, TEACHER_DIM, CLASSES = 6, 5, 4


def build(seed=0, **options):
    torch.manual_seed(seed)
    student = specs.model("net", "cnn", STUDENT_DIM, [], CLASSES)
    options = {"num_negatives": 9, "embedding_dim": 3, **options}
    teacher = specs.teacher(TEACHER_DIM, CLASSES)
    return CRD.build(student, teacher, num_classes=CLASSES, **resolve_options("crd", CRD.build, options)).double()


def batch_of(seed, target, first_id=0):
    random = torch.Generator().manual_seed(seed)
    target = torch.tensor(target)
    shapes = (len(target), CLASSES), (len(target), STUDENT_DIM), (len(target), TEACHER_DIM)
    logits, mine, theirs = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    batch = Batch(images={}, target=target, sample_id=torch.arange(len(target)) + first_id)
    return Outputs(logits=logits, embedding=mine.requires_grad_()), Outputs(embedding=theirs), batch


def projected(linear, rows):
    """Written out: a linear layer and length 1."""
    answer = []
    for row in rows.tolist():
        weights = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        made = [sum(w * x for w, x in zip(weight, row, strict=True)) + bias for weight, bias in weights]
        length = sum(x * x for x in made) ** 0.5
        answer.append([x / length for x in made])
    return answer


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


class Written:
    """Two losses of each step with lists instead of tensors, for labelled and unlabelled images."""

    def __init__(self, method, num_samples):
        memory = method.memory
        entries = memory.student, memory.teacher, memory.labels, memory.sample_ids
        self.queue = oracle.Queue(zip(*(entry.tolist() for entry in entries), strict=True))
        self.method, self.num_samples, self.normalizers = method, num_samples, [None, None]

    def step(self, student, teacher, batch, *, remember=True):
        mine = projected(self.method.student_projection, student.embedding)
        theirs = projected(self.method.teacher_projection, teacher.embedding)
        labels, ids = batch.target.tolist(), batch.sample_id.tolist()
        if remember:
            self.queue.write(zip(mine, theirs, labels, ids, strict=True))
        allowed = [
            [(label == -1 or label != other) and number != whose and whose != -1 for *_, other, whose in self.rows]
            for label, number in zip(labels, ids, strict=True)
        ]
        values = []
        for direction, (anchors, partners) in enumerate([(mine, theirs), (theirs, mine)]):
            temperature = self.method.temperature
            positive = [dot(a, b) / temperature for a, b in zip(anchors, partners, strict=True)]
            negatives = [[dot(a, row[1 - direction]) / temperature for row in self.rows] for a in anchors]
            scores = positive, negatives, allowed
            normalizer = self.normalizers[direction] or oracle.normalizer(*scores, num_samples=self.num_samples)
            if remember:
                self.normalizers[direction] = normalizer
            values.append(oracle.noise_contrastive(*scores, normalizer=normalizer, num_samples=self.num_samples))
        return values

    @property
    def rows(self):
        return self.queue.rows


def test_steps_equal_the_released_formula_with_a_queue_written_out():
    """Four batches wrap around nine entries; one is not in training; the data set's size cancels."""
    method = build(temperature=0.3)
    written = Written(method, num_samples=777)
    steps = [([0, 1, -1, 2], 0), ([1, 1, 3], 4), ([-1, 2, 0, 3], 7), ([2, 0], 0)]
    for seed, (target, first_id) in enumerate(steps):
        arguments = batch_of(seed, target, first_id)
        for remember in (False, True) if seed else (True,):
            method.train(remember)
            terms = method(*arguments)
            expected = written.step(*arguments, remember=remember)
            assert [terms["crd_student"].item(), terms["crd_teacher"].item()] == pytest.approx(expected, rel=1e-9)
        entries = [tuple(entry) for entry in written.rows]
        assert method.memory.sample_ids.tolist() == [entry[3] for entry in entries]
        assert method.memory.labels.tolist() == [entry[2] for entry in entries]
        torch.testing.assert_close(method.memory.student, torch.tensor([entry[0] for entry in entries]).double())
        torch.testing.assert_close(method.memory.teacher, torch.tensor([entry[1] for entry in entries]).double())
    assert method.memory.num_written.item() == 13


def test_the_normalisers_are_those_of_the_first_batch_with_negatives_in_training():
    method = build()
    for training, target in ((False, [0, 1, 2]), (True, [2]), (True, [2, 2])):
        method.train(training)(*batch_of(0, target))
        assert (method.log_means == 0).all()
        assert method.are_fixed == 0
    method(*batch_of(1, [0, 1, 2], first_id=2))
    first = method.log_means.clone()
    assert (first != 0).all()
    assert method.are_fixed == 1
    method(*batch_of(2, [0, 1, 2]))
    assert torch.equal(method.log_means, first)


def test_rows_that_nobody_has_written_change_nothing():
    first, second = build(), build()
    with torch.no_grad():
        second.memory.student.fill_(7.0)
        second.memory.teacher.fill_(-7.0)
    arguments = batch_of(0, [0, 1, -1])
    one, other = first(*arguments), second(*arguments)
    assert all(one[name] == other[name] != 0 for name in one)


def test_the_gradient_reaches_the_student_and_both_projections_after_the_memory_has_changed():
    method = build()
    for seed in range(3):
        method.zero_grad()
        student, teacher, batch = batch_of(seed, [0, -1, 3, 2], first_id=4 * seed)
        sum(method(student, teacher, batch).values()).backward()
        assert (student.embedding.grad.abs().sum(dim=1) > 0).all()
        assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


def test_an_anchor_teaches_its_own_side_only():
    method = build()
    student, teacher, batch = batch_of(0, [0, 1, 2])
    method(student, teacher, batch)["crd_teacher"].backward()
    assert student.embedding.grad is None
    assert method.student_projection.weight.grad is None
    assert method.teacher_projection.weight.grad.abs().sum() > 0


def test_training_pulls_the_two_embeddings_of_an_image_together():
    method = build(num_negatives=64, embedding_dim=8)
    student, teacher, batch = batch_of(0, [0, 1, 2, 3, 0, 1, 2, 3])
    optimizer = torch.optim.SGD([*method.parameters(), student.embedding], lr=0.05)

    def losses_of_a_step():
        optimizer.zero_grad()
        total = sum(method(student, teacher, batch).values())
        total.backward()
        optimizer.step()
        return total.item()

    steps = [losses_of_a_step() for _ in range(60)]
    assert steps[-1] < 0.5 * steps[0]


def test_mixed_labels_count_as_their_likeliest_class_and_none_as_none():
    method = build()
    student, teacher, batch = batch_of(0, [0, 0, 0])
    soft = torch.tensor([[0.4, 0.6, 0.0, 0.0], [0.0] * 4, [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    method(student, teacher, Batch(images={}, target=soft, sample_id=batch.sample_id))
    assert method.memory.labels.tolist() == [1, -1, 3, *[-1] * 6]


def test_one_class_alone_has_no_negatives_and_no_loss():
    method = build(num_negatives=3)
    arguments = batch_of(0, [1, 1, 1, 1])
    method(*arguments)  # larger than the memory, whose entries are now all of that class
    assert method.memory.sample_ids.tolist() == [3, 1, 2]
    student, teacher, batch = batch_of(1, [1, 1], first_id=50)
    terms = method(student, teacher, batch)
    sum(terms.values()).backward()
    assert [term.item() for term in terms.values()] == [0.0, 0.0]
    assert (student.embedding.grad == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize("kind", ["one image", "zeros", "far away"])
def test_odd_batches_are_finite(kind):
    method = build(temperature=0.001)
    student, teacher, batch = batch_of(0, [2] if kind == "one image" else [2, 2, 0])
    scale = {"one image": 1.0, "zeros": 0.0, "far away": 1e9}[kind]
    mine = (scale * student.embedding).detach().requires_grad_()
    if kind == "zeros":
        for layer in (method.student_projection, method.teacher_projection):
            torch.nn.init.zeros_(layer.bias)
    outputs = Outputs(logits=student.logits, embedding=mine), Outputs(embedding=scale * teacher.embedding)
    for _ in range(2):
        total = sum(method(*outputs, batch).values())
        total.backward()
        assert total.isfinite()
    assert mine.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())
    assert all(buffer.isfinite().all() for buffer in method.buffers())


def test_a_step_that_overflowed_leaves_no_trace():
    method = build()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    student, teacher, batch = batch_of(0, [0, 1])
    broken = Outputs(logits=student.logits, embedding=student.embedding.detach() * torch.inf)
    assert not sum(method(broken, teacher, batch).values()).isfinite()
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert sum(method(student, teacher, batch).values()).isfinite()


def test_half_precision_goes_into_a_memory_in_float32():
    method = build().float()
    student, teacher, batch = batch_of(0, [0, 1, 2])
    outputs = (
        Outputs(logits=student.logits, embedding=student.embedding.float()),
        Outputs(embedding=teacher.embedding.float()),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method(*outputs, batch)
    assert {term.dtype for term in terms.values()} == {method.memory.student.dtype} == {torch.float32}
    torch.testing.assert_close(method.memory.student[:3].norm(dim=1), torch.ones(3))


def test_saved_state_goes_on_in_the_same_bits():
    first, second = build(), build(seed=1)
    for seed in range(3):
        first(*batch_of(seed, [0, 1, 2, 3], first_id=4 * seed))
    second.load_state_dict(first.state_dict())
    for seed in range(3, 6):
        arguments = batch_of(seed, [0, 1, 2, 3], first_id=4 * seed)
        one, other = first(*arguments), second(*arguments)
        assert all(torch.equal(one[name], other[name]) for name in one)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def train(out=None, *, reporter=None, micro_batch=8):
    torch.manual_seed(0)
    student, teacher = SmallNet(seed=1), SmallNet(seed=2)
    method = CRD.build(student.spec, teacher.spec, num_classes=NUM_CLASSES, num_negatives=40, embedding_dim=4)
    loader = TensorLoader(micro_batch=micro_batch, unlabelled=5)
    reporters = {} if reporter is None else {"reporter": reporter}
    fit(
        student,
        method,
        FrozenTeacher(teacher),
        loader,
        loader.evaluation(),
        settings=settings(),
        device="cpu",
        out=out,
        **reporters,
    )
    return {**student.state_dict(), **{f"method.{key}": value for key, value in method.state_dict().items()}}


def test_a_run_remembers_each_micro_batch_in_order_and_resumes_in_the_same_bits(tmp_path):
    whole = train(tmp_path / "whole")
    seen = [
        batch.sample_id for epoch in range(3) for step in TensorLoader(micro_batch=8).epoch(epoch) for batch in step
    ]
    expected = torch.full((40,), -1)
    seen = torch.cat(seen)
    expected[torch.arange(len(seen))[-40:] % 40] = seen[-40:]
    assert torch.equal(whole["method.memory.sample_ids"], expected)
    assert whole["method.memory.num_written"] == len(seen) == 192
    with pytest.raises(Interrupted):
        train(tmp_path / "resumed", reporter=Stop(7))
    resumed = train(tmp_path / "resumed")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_defaults_are_those_of_the_published_comparison():
    method = CRD.build(specs.resnet18(CLASSES), specs.teacher(24, 1000), num_classes=CLASSES)
    assert method.memory.student.shape == method.memory.teacher.shape == (16384, 128)
    assert (method.temperature, method.weight) == (0.07, 1.0)
    assert METHODS.get("crd").value is CRD
    assert method.needs == {"embedding"}
    assert method.relates_samples


@pytest.mark.parametrize("value", [-1, 0, float("nan")])
@pytest.mark.parametrize("option", ["num_negatives", "embedding_dim", "temperature"])
def test_sizes_and_temperature_are_checked(option, value):
    with pytest.raises(InputError, match=option):
        build(**{option: value})


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_the_weight_is_checked(value):
    with pytest.raises(InputError, match=rf"weight={value}"):
        CRD.build(specs.resnet18(CLASSES), specs.teacher(24, CLASSES), num_classes=CLASSES, weight=value)


def test_the_weight_scales_both_losses():
    arguments = batch_of(0, [0, 1, 2])
    once, thrice = build()(*arguments), build(weight=3.0)(*arguments)
    for name, value in once.items():
        torch.testing.assert_close(thrice[name], 3 * value)
