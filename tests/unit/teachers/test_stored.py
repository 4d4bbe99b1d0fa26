"""A stored teacher answers by epoch and sample, alone or as several, and knows what it holds."""

from dataclasses import replace

import pytest
import torch

from crossdistill.contracts import Batch, InputSpec, ModelSpec, StageSpec, Teacher
from crossdistill.errors import InputError
from crossdistill.store import Keep, Manifest, Store, StoreWriter
from crossdistill.teachers import StoredEnsemble, StoredTeacher, are_several, facts_of, stored_teacher
from crossdistill.teachers.stored import spec_of

NUM_CLASSES, DIMS = 5, (3, 4)
SPEC = ModelSpec(
    "net",
    "transformer",
    NUM_CLASSES,
    DIMS[0],
    (StageSpec(8, 16, "NLC", 1, (2, 3)),),
    InputSpec((32, 48), 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
    100,
    tuple("abcde"),
)


class One:
    """A teacher of which only the facts are asked."""

    spec, holds = SPEC, frozenset({"logits", "embedding"})


class Two(One):
    teachers = (One(), One())
    weights = (0.25, 0.75)


@pytest.fixture
def answers():
    """Of two epochs of four samples: ids 7, 3, 3 again, and 9."""
    random = torch.Generator().manual_seed(0)
    samples = torch.tensor([[7, 0], [3, 0], [3, 1], [9, 0]])
    shapes = [(2, 4, NUM_CLASSES), *((2, 4, dim) for dim in DIMS)]
    return samples, *(torch.randn(shape, generator=random) for shape in shapes)


def store_of(path, answers, teacher, num_embeddings):
    samples, logits, *embeddings = answers
    keep, facts = Keep(embeddings=num_embeddings > 0), {"teacher": facts_of(teacher)}
    writer = StoreWriter.open(path, Manifest({}, facts, NUM_CLASSES, 4, 4, keep, DIMS[:num_embeddings]))
    for epoch in (0, 1):
        writer.write(epoch, 0, samples, logits[epoch], [one[epoch] for one in embeddings[:num_embeddings]])
    return Store.open(path)


def batch_of(samples, epoch=0, with_samples=True):
    target = torch.zeros(len(samples), dtype=torch.int64)
    return Batch({}, target, samples[:, 0].contiguous(), epoch, samples if with_samples else None)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=2**-9)


def test_a_batch_is_found_by_epoch_and_sample_in_any_order(tmp_path, answers):
    samples, logits, embedding, _ = answers
    teacher = stored_teacher(store_of(tmp_path, answers, One(), 1))
    assert type(teacher) is StoredTeacher
    assert isinstance(teacher, Teacher)
    assert teacher.holds == {"logits", "embedding"}
    order = torch.tensor([2, 0, 1])
    for epoch in (1, 0):
        found = teacher.signals(batch_of(samples[order], epoch))
        close(found.logits, logits[epoch, order])
        close(found.embedding, embedding[epoch, order])
        assert found.logits.dtype == found.embedding.dtype == torch.float32
        assert found.stages is found.members is None


def test_a_batch_that_does_not_say_how_often_shows_each_sample_for_the_first_time(tmp_path, answers):
    samples, logits, *_ = answers
    teacher = stored_teacher(store_of(tmp_path, answers, One(), 0))
    assert teacher.holds == {"logits"}
    found = teacher.signals(batch_of(samples[[1, 3]], with_samples=False))
    close(found.logits, logits[0, [1, 3]])
    assert found.embedding is None
    with pytest.raises(InputError, match="id 4"):
        teacher.signals(batch_of(torch.tensor([[4, 0]])))


def test_the_embedding_is_read_only_where_it_is_passed_on(tmp_path, answers):
    samples, logits, embedding, _ = answers
    teacher = stored_teacher(store_of(tmp_path, answers, One(), 1))
    assert teacher.passes_on == teacher.holds
    close(teacher.signals(batch_of(samples)).embedding, embedding[0])
    teacher.passes_on = frozenset({"logits"})
    assert set(teacher._answers(batch_of(samples)).rows) == {"shift", "logits"}
    found = teacher.signals(batch_of(samples))
    close(found.logits, logits[0])
    assert found.embedding is None


def test_several_answer_as_one_and_pass_on_the_embeddings_that_are_asked_for(tmp_path, answers):
    samples, logits, *embeddings = answers
    teacher = stored_teacher(store_of(tmp_path, answers, Two(), 2))
    assert type(teacher) is StoredEnsemble
    assert are_several(teacher)
    assert not are_several(One())
    assert teacher.weights == (0.25, 0.75)
    assert [one.view for one in teacher.teachers] == ["teacher0", "teacher1"]
    found = teacher.signals(batch_of(samples))
    assert [member.embedding for member in found.members] == [None, None]
    teacher.passes_on = frozenset({"embedding"})
    found = teacher.signals(batch_of(samples))
    close(found.logits, logits[0])
    for member, expected in zip(found.members, embeddings, strict=True):
        close(member.embedding, expected[0])


def test_the_facts_of_a_network_come_back_as_they_were(tmp_path, answers):
    assert spec_of(facts_of(One())["spec"]) == SPEC
    bare = replace(SPEC, class_names=None, stages=())
    teacher = One()
    teacher.spec = bare
    assert spec_of(facts_of(teacher)["spec"]) == bare
    stored = stored_teacher(store_of(tmp_path, answers, One(), 0))
    assert stored.spec == replace(SPEC, name="net (stored)")
    assert stored.fingerprint() == stored.store.fingerprint()


@pytest.mark.parametrize("facts", [{}, {"teacher": {}}, {"teacher": {"members": [], "spec": {"name": "net"}}}])
def test_a_store_that_does_not_describe_its_teacher_is_refused(tmp_path, facts):
    StoreWriter.open(tmp_path, Manifest({}, facts, NUM_CLASSES, 4, 4, Keep()))
    with pytest.raises(InputError, match="does not describe its teacher"):
        stored_teacher(Store.open(tmp_path))
