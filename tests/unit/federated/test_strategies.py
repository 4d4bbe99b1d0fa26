"""Strategies from answers to teachers, each against what it says it does."""

import numpy as np
import pytest

from crossdistill.errors import InputError
from crossdistill.federated.fusion import estimated_distribution
from crossdistill.federated.knowledge import Knowledge
from crossdistill.federated.strategies.auto import CANDIDATES
from crossdistill.federated.strategy import STRATEGIES, Answer, Report, Told
from oracles import knfu as oracle
from samples.federations import small

NUM, SAMPLES, CLASSES = 4, 12, 5


def answers(seed=0, *, rows=None, weights=False, histogram=False):
    random = np.random.default_rng(seed)
    soft = random.dirichlet(np.full(CLASSES, 0.4), size=(NUM, SAMPLES))
    return [
        Answer(
            client,
            "even" if client % 2 == 0 else "odd",
            10 * (client + 1),
            Knowledge.of(one, None if rows is None else rows[client]),
            {"w": np.full(3, float(client), dtype=np.float32), "n": np.array(client)} if weights else None,
            random.integers(1, 9, CLASSES) if histogram else None,
        )
        for client, one in enumerate(soft)
    ]


def strategy(name, *overrides):
    return STRATEGIES.get(name).value(small(*overrides))


def stacked(given):
    return np.stack([one.knowledge.soft for one in given]).astype(float)


def teachers(fused):
    return np.stack([fused.told[client].teacher.soft for client in range(NUM)])


def test_local_tells_nobody_anything_and_asks_nothing():
    local = strategy("local")
    assert local.wants == frozenset()
    assert local.fuse(answers(), 1).told == {}


def test_self_gives_everybody_its_own_answers():
    given = answers()
    np.testing.assert_allclose(teachers(strategy("self").fuse(given, 1)), stacked(given), atol=1e-7)


def test_fedmd_gives_everybody_the_mean():
    given = answers()
    fused = teachers(strategy("fedmd").fuse(given, 1))
    np.testing.assert_allclose(fused, np.broadcast_to(stacked(given).mean(axis=0), fused.shape), atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0])
def test_knfu_is_what_the_plain_loops_give(beta):
    given = answers()
    fused = strategy("knfu", f"fusion.beta={beta}").fuse(given, 1)
    own = [[list(map(float, row)) for row in one] for one in stacked(given)]
    shares = [oracle.estimated_distribution(one) for one in own]
    expected = oracle.fusion_weights(oracle.divergences([oracle.smooth(one) for one in shares]), beta)
    np.testing.assert_allclose(fused.matrix, expected, atol=1e-12)
    np.testing.assert_allclose(teachers(fused), oracle.fuse(own, expected), atol=1e-6)


def test_knfu_without_reach_is_self_and_with_all_reach_is_fedmd():
    given = answers()
    far = teachers(strategy("knfu", "fusion.beta=1e9").fuse(given, 1))
    near = teachers(strategy("knfu", "fusion.beta=0").fuse(given, 1))
    np.testing.assert_allclose(far, teachers(strategy("self").fuse(given, 1)), atol=1e-6)
    np.testing.assert_allclose(near, teachers(strategy("fedmd").fuse(given, 1)), atol=1e-6)


def test_the_cut_and_the_guard_take_teachers_away():
    given = answers()
    cut = strategy("knfu", "fusion.threshold=1.5").fuse(given, 1).matrix
    assert (cut[~np.eye(NUM, dtype=bool)] == 0).any()
    shuffled = list(given)
    rows = np.random.default_rng(3).permutation(SAMPLES)
    same = [Answer(one.client, one.model, one.num_train, given[0].knowledge) for one in given]
    same[2] = Answer(2, "even", 30, Knowledge.of(given[0].knowledge.soft[rows]))
    shuffled = strategy("knfu", "fusion.guard=true", "fusion.least_agreement=0.5").fuse(same, 1)
    assert shuffled.matrix[0, 2] == 0
    assert shuffled.matrix[0, 1] > 0.3
    assert any("client 2" in note for note in shuffled.notes)


def test_the_true_histograms_take_the_place_of_the_estimate():
    given = answers(histogram=True)
    shares = [list(one.histogram / one.histogram.sum()) for one in given]
    expected = oracle.fusion_weights(oracle.divergences([oracle.smooth(one) for one in shares]), 10.0)
    np.testing.assert_allclose(strategy("epd_true").fuse(given, 1).matrix, expected, atol=1e-12)


def test_fedavg_is_the_mean_by_images_and_keeps_types():
    fused = strategy("fedavg").fuse(answers(weights=True), 1)
    expected = sum(client * 10 * (client + 1) for client in range(NUM)) / 100
    for client in range(NUM):
        told = fused.told[client]
        np.testing.assert_allclose(told.weights["w"], np.full(3, expected), rtol=1e-6)
        assert told.weights["w"].dtype == np.float32
        assert told.weights["n"] == NUM - 1
        assert told.teacher is None


def test_feddf_averages_each_architecture_and_teaches_the_mean_logits():
    given = answers(weights=True)
    fused = strategy("feddf").fuse(given, 1)
    assert np.allclose(fused.told[0].weights["w"], (0 * 10 + 2 * 30) / 40)
    assert np.allclose(fused.told[1].weights["w"], (1 * 20 + 3 * 40) / 60)
    logits = np.log(stacked(given)).mean(axis=0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(teachers(fused)[3], expected, atol=1e-5)


def test_selective_fd_hears_those_who_know_and_drops_what_nobody_is_sure_of():
    rows = np.ones((NUM, SAMPLES), dtype=bool)
    rows[:, 0] = False  # nobody knows it
    rows[1:, 1] = False  # only the first one does
    given = answers(rows=rows)
    given[0].knowledge.soft[1] = np.eye(CLASSES)[2]
    given[0].knowledge.soft[2] = given[1].knowledge.soft[2] = 0.2
    given[2].knowledge.soft[2] = given[3].knowledge.soft[2] = 0.2
    told = strategy("selective_fd").fuse(given, 1).told[3].teacher
    assert not told.rows[0]
    assert told.rows[1]
    np.testing.assert_allclose(told.soft[1], np.eye(CLASSES)[2], atol=1e-6)
    assert not told.rows[2]


def test_auto_tries_each_candidate_with_each_client_alike_and_keeps_the_best():
    auto = strategy("auto", "rounds=20")
    num = len(auto.candidates)
    assert num == len(CANDIDATES)
    for round_ in range(1, num + 1):
        auto.fuse(answers(), round_)
        tried = auto.assigned[round_]
        # Candidate 2 helps, all others hurt.
        auto.hear(Report(round_, {client: 0.1 if tried[client] == 2 else -0.1 for client in tried}))
    assert {len(one) for one in auto.gains} == {NUM}
    auto.fuse(answers(), num + 1)
    assert set(auto.assigned[num + 1].values()) == {2}
    chosen = auto.chosen()
    assert chosen["beta"] == auto.candidates[2].beta
    assert chosen["tried"][2] == {
        **{k: chosen[k] for k in ("beta", "temperature", "threshold")},
        "gain": 0.1,
        "reports": 4,
    }


def test_auto_with_its_first_candidate_alone_is_knfu():
    given = answers()
    auto = strategy("auto", "rounds=2")
    assert len(auto.candidates) == 1
    fused = auto.fuse(given, 1)
    np.testing.assert_allclose(teachers(fused), teachers(strategy("knfu").fuse(given, 1)), atol=1e-6)
    assert fused.told[0].temperature == 3.0


def test_auto_brings_answers_to_another_temperature():
    auto = strategy("auto", "rounds=20")
    index = next(i for i, one in enumerate(auto.candidates) if one.temperature == 1.0)
    given = answers()
    fused, _, _ = auto._fused(auto.candidates[index], stacked(given), given)
    sharp = stacked(given) ** 3
    sharp /= sharp.sum(axis=2, keepdims=True)
    shares = np.stack([estimated_distribution(one) for one in sharp])
    own = [[list(map(float, row)) for row in one] for one in sharp]
    weights = oracle.fusion_weights(oracle.divergences([oracle.smooth(list(map(float, one))) for one in shares]), 10.0)
    np.testing.assert_allclose(fused, oracle.fuse(own, weights), atol=1e-9)


def test_auto_goes_on_where_it_was():
    auto = strategy("auto", "rounds=20")
    auto.fuse(answers(), 1)
    auto.hear(Report(1, {0: 0.5, 3: -0.5}))
    other = strategy("auto", "rounds=20")
    import json

    other.restore(json.loads(json.dumps(auto.state())))
    assert (other.gains, other.assigned) == (auto.gains, auto.assigned)


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(InputError, match="federate --help"):
        STRATEGIES.get("knfuu")


def test_every_strategy_says_what_it_is():
    for record in STRATEGIES:
        assert record.facts["title"]
        assert len(record.facts["summary"]) > 20


def test_told_holds_nothing_by_itself():
    assert Told() == Told(None, None, None)
