"""A client's part of a round, with real networks on digits."""

import dataclasses

import numpy as np
import pytest
import torch

from crossdistill.contracts import Batch
from crossdistill.errors import InputError
from crossdistill.federated import private
from crossdistill.federated.account import Account
from crossdistill.federated.client import Client, Task
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.memory import Memory
from crossdistill.federated.private import noise_for, sampling
from crossdistill.federated.selection import certain, familiar
from crossdistill.federated.sites import Images, sites_of
from crossdistill.federated.teacher import GivenTeacher
from crossdistill.losses import kd
from samples.federations import small

WANTS = frozenset({"knowledge"})


def client_of(settings, folder, number=0, **changes):
    site = dataclasses.replace(sites_of(settings)[number], **changes)
    return Client(site, settings, Memory(folder))


def task(round_=1, **given):
    return Task(round_, **{"wants": WANTS, "temperature": 3.0, **given})


def one_hot(num, classes=10, index=3):
    soft = np.full((num, classes), 0.001)
    soft[:, index] = 1 - 0.001 * (classes - 1)
    return Knowledge.of(soft)


def test_answers_are_the_networks_softened_probabilities(settings, tmp_path):
    client = client_of(settings, tmp_path)
    reply = client.carry_out(task())
    past = client.memory.before(1)
    student, _ = client._restored(past)
    student.eval()
    images = torch.cat([batch.images["student"] for batch in loader_of(client, student)])
    with torch.no_grad():
        expected = (student(images).logits / 3.0).softmax(dim=1)
    np.testing.assert_allclose(reply.knowledge.soft, expected.numpy(), atol=1e-5)
    assert reply.knowledge.rows.all()
    assert len(reply.knowledge.soft) == 40


def loader_of(client, student):
    from crossdistill.federated.client import _eval_loader

    return _eval_loader(client.site.transfer, student.spec.input, client.settings)


def test_a_round_is_repeatable_and_a_repeated_task_is_answered_without_doing_it_again(settings, tmp_path):
    first = client_of(settings, tmp_path / "a").carry_out(task())
    other = client_of(settings, tmp_path / "b").carry_out(task())
    assert np.array_equal(first.knowledge.soft, other.knowledge.soft)
    before = (tmp_path / "a" / "round-00001.safetensors").stat().st_mtime_ns
    again = client_of(settings, tmp_path / "a").carry_out(task())
    assert np.array_equal(first.knowledge.soft, again.knowledge.soft)
    assert first.figures == again.figures
    assert (tmp_path / "a" / "round-00001.safetensors").stat().st_mtime_ns == before


def test_clients_begin_differently_unless_weights_are_shared(settings, tmp_path):
    def first_weights(number, wants):
        client = client_of(settings, tmp_path / f"{number}{len(wants)}", number)
        student, _ = client._begun(task(wants=wants))
        return next(iter(student.net.parameters())).detach()

    assert not torch.equal(first_weights(0, WANTS), first_weights(1, WANTS))
    weights = frozenset({"weights"})
    assert torch.equal(first_weights(0, weights), first_weights(1, weights))


def test_fine_tuning_moves_towards_the_teacher_and_touches_no_label(tmp_path):
    settings = small("safety.reject=false", "tune.steps=40", "tune.lr=0.003")
    site = sites_of(settings)[0]
    assert (site.transfer.source.targets[site.transfer.ids] >= 0).all()  # there are labels, which must not be read
    closing = client_of(settings, tmp_path / "other")
    closing.carry_out(task())
    closing.carry_out(task(2, teacher=one_hot(40), closing=True))
    student, _ = closing._restored(closing.memory.before(2))
    images = torch.cat([batch.images["student"] for batch in loader_of(closing, student)])
    with torch.no_grad():
        share = (student.eval()(images).logits.argmax(dim=1) == 3).float().mean()
    assert share > 0.8


def test_a_teacher_that_makes_it_worse_is_rejected_to_the_last_bit(tmp_path):
    how = ("tune.steps=40", "tune.lr=0.01", "train.steps=120", "train.lr=0.003", "partition.samples=100")
    site = sites_of(small(*how))[0]
    misleading = one_hot(40, index=int(site.val.histogram.argmin()))

    def learn(folder, *overrides):
        client = client_of(small(*how, *overrides), folder)
        client.carry_out(task())
        kept = client.memory.before(1).student
        reply = client.carry_out(task(2, teacher=misleading, closing=True))
        after = client.memory.before(2).student
        assert reply.figures["val_after"] < reply.figures["val_before"]
        return reply.figures["rejected"], all(torch.equal(after[name], kept[name]) for name in kept)

    assert learn(tmp_path / "on") == (1.0, True)
    assert learn(tmp_path / "off", "safety.reject=false") == (0.0, False)
    assert learn(tmp_path / "tolerant", "safety.tolerance=0.99") == (0.0, False)


def test_only_answered_rows_teach(tmp_path):
    settings = small("safety.reject=false")
    client = client_of(settings, tmp_path)
    client.carry_out(task())
    nothing = Knowledge.of(one_hot(40).soft, np.zeros(40, dtype=bool))
    reply = client.carry_out(task(2, teacher=nothing, closing=True))
    assert "val_after" not in reply.figures


def test_own_accuracy_is_the_test_sets_by_the_clients_class_shares(settings, tmp_path):
    client = client_of(settings, tmp_path)
    client.carry_out(task())
    student, _ = client._restored(client.memory.before(1))
    figures = client.test(student)
    site, per_class = client.site, []
    student.eval()
    from crossdistill.federated.client import _eval_loader

    correct, total = np.zeros(10), np.zeros(10)
    for batch in _eval_loader(site.test, student.spec.input, settings):
        with torch.no_grad():
            guess = student(batch.images["student"]).logits.argmax(dim=1)
        for one, target in zip(guess.tolist(), batch.target.tolist(), strict=True):
            total[target] += 1
            correct[target] += one == target
    per_class = correct / total
    assert figures["own_accuracy"] == pytest.approx(float((site.histogram / site.histogram.sum() * per_class).sum()))
    assert figures["balanced_accuracy"] == pytest.approx(per_class.mean())


@pytest.mark.parametrize("count", [0, 1])
def test_a_client_of_no_image_or_one_trains_nothing_and_says_so(settings, tmp_path, count):
    site = sites_of(settings)[0]
    few = Images(site.train.source, site.train.ids[:count])
    none = Images(site.train.source, site.train.ids[:0])
    client = client_of(settings, tmp_path, train=few, val=none)
    reply = client.carry_out(task())
    assert any("not trained" in note for note in reply.notes)
    assert reply.knowledge is None
    after = client.carry_out(task(2, teacher=one_hot(40)))
    assert after.figures["rejected"] == 0.0


def test_a_client_of_one_class_trains(settings, tmp_path):
    site = sites_of(settings)[0]
    source = site.train.source
    zeros = Images(source, np.flatnonzero(source.targets == 0)[:20])
    reply = client_of(settings, tmp_path, train=zeros).carry_out(task())
    assert np.isfinite(reply.knowledge.soft).all()


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    with pytest.raises(InputError, match="finite"):
        client_of(small("train.lr=1e30", "train.optimizer=sgd", "train.steps=30"), tmp_path).carry_out(task())


def test_another_task_of_the_same_round_is_carried_out(settings, tmp_path):
    """A run that was submitted anew, or another closing, must not be answered from what an earlier one left."""
    client = client_of(settings, tmp_path)
    client.carry_out(task())
    first = client.carry_out(task(2, teacher=one_hot(40), closing=True))
    assert first.knowledge is None
    other = client.carry_out(task(2, teacher=one_hot(40, index=5)))
    assert other.knowledge is not None
    fresh = client_of(settings, tmp_path / "fresh")
    fresh.carry_out(task())
    assert np.array_equal(other.knowledge.soft, fresh.carry_out(task(2, teacher=one_hot(40, index=5))).knowledge.soft)


def test_an_untrained_network_is_not_tested(settings, tmp_path):
    assert "own_accuracy" not in client_of(settings, tmp_path).carry_out(task(3, test=True)).figures


@pytest.mark.parametrize("method", ["dkd", "dist", "ofa"])
def test_other_methods_on_logits_fine_tune_as_well(method, tmp_path):
    client = client_of(small(f"method.name={method}", models=["transformer"]), tmp_path)
    client.carry_out(task())
    reply = client.carry_out(task(2, teacher=one_hot(40)))
    assert {"val_before", "val_after"} <= set(reply.figures)
    assert bool(client.memory.before(2).method) == (method == "ofa")  # exit branches are kept from round to round


def noisy(folder, *overrides, account=None, run="a" * 32, rounds=3):
    settings = small("privacy.epsilon=4", *overrides, rounds=rounds)
    return Client(sites_of(settings)[0], settings, Memory(folder / run), account=account, run=run)


def test_noisy_training_is_paid_from_round_to_round_and_not_beyond(tmp_path):
    client = noisy(tmp_path)
    spent = [client.carry_out(task(round_)).figures["epsilon"] for round_ in (1, 2, 3)]
    assert spent[0] < spent[1] < spent[2] <= 4
    rate, steps = sampling(24, client.settings.train)
    (history,) = Account(client.account.folder).runs.values()
    assert history == [[pytest.approx(noise_for(4, 24**-1.1, rate, 3 * steps)), rate, 3 * steps]]
    with pytest.raises(InputError, match="epsilon"):
        client.carry_out(task(4))


def test_a_server_cannot_wind_an_account_back_nor_get_the_same_noise_twice(tmp_path):
    """Neither by asking for a round again, nor by another run, nor with other settings."""

    def weights_of(client):
        return client.memory.before(1).student["head.weight"]

    account = Account(tmp_path / "account")
    first = noisy(tmp_path, account=account)
    one = first.carry_out(task(1)).figures["epsilon"]
    second = noisy(tmp_path, "gather=7", account=Account(tmp_path / "account"), run="b" * 32)
    two = second.carry_out(task(1)).figures["epsilon"]
    assert two > one
    assert not torch.equal(weights_of(first), weights_of(second))
    third = second.carry_out(task(1, temperature=2.0)).figures["epsilon"]  # another task of the same round
    assert third > two
    again = second.carry_out(task(1, temperature=2.0)).figures["epsilon"]  # the same one is answered, not done again
    assert again == third


def test_training_that_fails_is_paid_all_the_same(tmp_path, monkeypatch):
    client = noisy(tmp_path)

    def broken(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(private, "_run", broken)
    with pytest.raises(KeyboardInterrupt):
        client.carry_out(task(1))
    assert Account(client.account.folder).spent(1e-5).steps == 3


def test_a_client_has_a_limit_of_its_own(tmp_path):
    limited = noisy(tmp_path, account=Account(tmp_path / "account", budget=0.5))
    with pytest.raises(InputError, match=r"0\.5"):
        limited.carry_out(task(1))
    assert limited.account.spent(1e-5).steps == 0
    settings = small()
    plain = Client(sites_of(settings)[0], settings, Memory(tmp_path), account=Account(tmp_path / "b", budget=8.0))
    with pytest.raises(InputError, match="without noise"):
        plain.carry_out(task(1))
    for want in ("selection", "histogram"):
        with pytest.raises(InputError, match=want):
            noisy(tmp_path / want).carry_out(task(1, wants=frozenset({"knowledge", want})))


def test_a_clients_delta_goes_before_a_larger_one(tmp_path):
    how = ("privacy.noise_multiplier=1", "privacy.epsilon=null", "privacy.delta=0.04")
    loose = noisy(tmp_path / "a", *how)
    strict = noisy(tmp_path / "b", *how, account=Account(tmp_path / "account", delta=1e-6))
    assert strict.carry_out(task(1)).figures["epsilon"] > loose.carry_out(task(1)).figures["epsilon"]


def test_a_damaged_account_is_told(tmp_path):
    client = noisy(tmp_path)
    client.carry_out(task(1))
    (client.account.folder / "account.json").write_text("{")
    with pytest.raises(InputError, match="what was spent"):
        Account(client.account.folder)


def test_batch_normalisation_has_no_noisy_training(tmp_path):
    with pytest.raises(InputError, match=r"batch normalisation|BatchNorm"):
        client_of(small("privacy.noise_multiplier=1", models=["cnn"]), tmp_path).carry_out(task())


def test_the_given_teacher_answers_with_logits_that_give_its_probabilities(settings):
    random = np.random.default_rng(0)
    soft = random.dirichlet(np.ones(10), size=6).astype(np.float32)
    ids = np.array([3, 8, 9, 20, 21, 40])
    spec = dataclasses.replace(_spec(settings), num_classes=10)
    teacher = GivenTeacher(Knowledge.of(soft), ids, spec, temperature=3.0)
    samples = torch.tensor([[20, 0], [3, 0], [40, 0]])
    logits = teacher.signals(Batch({}, torch.zeros(3), samples[:, 0], samples=samples)).logits
    np.testing.assert_allclose((logits / 3.0).softmax(dim=1).numpy(), soft[[3, 0, 5]], atol=1e-6)
    # The loss of knowledge distillation is then the specification's: temperature² times KL(teacher || student).
    student = torch.randn(3, 10)
    log_student = (student / 3.0).log_softmax(dim=1).numpy()
    expected = 9 * np.mean(
        [
            sum(p * (np.log(p) - q) for p, q in zip(soft[r], log_student[i], strict=True))
            for i, r in enumerate([3, 0, 5])
        ]
    )
    assert kd(student, logits, temperature=3.0).item() == pytest.approx(expected, rel=1e-4)


def _spec(settings):
    from crossdistill.runs.compose import model_of

    return model_of(settings.models[0], tuple(map(str, range(10)))).spec


def test_familiar_images_are_near_the_own_ones():
    random = np.random.default_rng(0)
    own = random.normal(size=(200, 4))
    near, far = random.normal(size=(50, 4)), random.normal(size=(50, 4)) + 20
    known = familiar(np.concatenate([near, far]), own)
    assert known[:50].mean() > 0.8
    assert not known[50:].any()
    assert not familiar(near, own[:1]).any()


def test_certain_rows_have_little_entropy():
    assert certain(np.array([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])).tolist() == [True, False, True]
