"""Rounds on a direct grid: the real apps and messages, with clients that misbehave in every way there is."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message

from crossdistill.errors import InputError
from crossdistill.federated.messages import FACTS, FIGURES, KNOWLEDGE
from samples.federations import small


def altered(number, change, *, only="train", rounds=(1, 2, 3)):
    """All nodes as they are, but what node ``number`` sends in these rounds goes through ``change``."""

    def apps(app):
        def one(message, context):
            reply = app(message, context)
            kind = message.metadata.message_type
            is_round = kind == "train" and int(message.content["task"]["round"]) in rounds
            return change(message, reply) if (is_round if only == "train" else kind == only) else reply

        return {node: one if node == number else app for node in (1, 2, 3)}

    return apps


def with_knowledge(make):
    def change(message, reply):
        array = reply.content[KNOWLEDGE]["soft"].numpy().copy()
        reply.content[KNOWLEDGE] = ArrayRecord({"soft": Array(make(array))})
        return reply

    return change


def test_a_run_goes_through_all_rounds_and_records_them(run, settings):
    log = run(settings).go().log
    assert [one["round"] for one in log.rounds] == [1, 2]
    for one in log.rounds:
        weights = np.array(one["weights"])
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
        assert one["members"] == [0, 1, 2]
        assert 0 <= one["worst"] <= one["alma"] <= 1
        for client in one["clients"].values():
            assert client["status"] == "ok"
            assert client["bytes_up"] == 40 * 10 * 2 + _header(client["bytes_up"])
            assert client["bytes_down"] == client["bytes_up"]
            assert client["val_after"] is not None
    assert log.closed
    assert len((log.folder / "metrics.jsonl").read_text().splitlines()) == 2


def _header(size):
    header = size - 800
    assert 0 < header <= 160  # of one array in Flower's records
    return header


def test_the_same_run_gives_the_same_bits(run, settings):
    first, other = run(settings, folder="a").go().log, run(settings, folder="b").go().log
    assert _figures(first) == _figures(other)


def _figures(log):
    timeless = json.loads(json.dumps(log.rounds))
    for one in timeless:
        for client in one["clients"].values():
            client.pop("seconds")
    return timeless


@pytest.mark.parametrize("strategy", ["self", "fedmd", "selective_fd", "epd_true", "feddf", "fedavg", "auto", "local"])
def test_every_strategy_runs(run, strategy):
    log = run(small(strategy=strategy)).go().log
    assert log.rounds[-1]["alma"] is not None
    sent = sum(client["bytes_up"] for client in log.rounds[0]["clients"].values())
    assert (sent == 0) == (strategy == "local")


def test_shared_weights_are_shared(run):
    made = run(small(strategy="fedavg")).go()
    final = made.log.rounds[-1]["clients"].values()
    assert len({one["balanced_accuracy"] for one in final}) == 1


BAD = {
    "nan": (lambda soft: np.where(np.arange(soft.shape[1]) == 1, np.nan, soft), "not finite"),
    "shape": (lambda soft: soft[:-1], "expected"),
    "classes": (lambda soft: np.concatenate([soft, soft[:, :1]], axis=1), "expected"),
    "range": (lambda soft: soft * 3, "outside|add up"),
    "oversized": (lambda soft: np.zeros((5000, 10), dtype=np.float16), "most that was asked for"),
    "integers": (lambda soft: (soft > 0.5).astype(np.int64), "expected|most"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_knowledge_is_refused_with_its_reason_and_the_others_go_on(run, settings, kind):
    make, words = BAD[kind]
    log = run(settings, altered(2, with_knowledge(make))).go().log
    for one in log.rounds:
        assert one["members"] == [0, 2]
        assert one["clients"]["1"]["status"] == "refused"
        import re

        assert re.search(words, one["clients"]["1"]["reason"])
    assert log.rounds[-1]["clients"]["0"]["own_accuracy"] is not None


def test_a_pickled_object_is_never_loaded(run, settings):
    def change(message, reply):
        array = Array(np.zeros((40, 10), dtype=np.float16))
        evil = np.array([{"a": 1}], dtype=object)
        import io

        file = io.BytesIO()
        np.save(file, evil, allow_pickle=True)
        array.data = file.getvalue()
        reply.content[KNOWLEDGE] = ArrayRecord({"soft": array})
        return reply

    log = run(settings, altered(2, change)).go().log
    assert log.rounds[0]["clients"]["1"]["status"] == "refused"
    assert "no array" in log.rounds[0]["clients"]["1"]["reason"]


def test_a_client_that_fails_in_a_round_is_absent_and_comes_back(run, settings):
    def fail(message, reply):
        return Message(Error(code=2, reason="Traceback: patient 12 …"), reply_to=message)

    log = run(settings, altered(3, fail, rounds=(1,))).go().log
    assert log.rounds[0]["clients"]["2"]["status"] == "absent"
    assert log.rounds[0]["members"] == [0, 1]
    assert log.rounds[1]["members"] == [0, 1, 2]
    assert "patient" not in json.dumps(log.rounds)
    # Without an answer in round 1 it was told nothing, so there was nothing to reject.
    assert log.rounds[0]["clients"]["2"].get("val_after") is None


def test_a_node_that_is_gone_is_told_from_a_late_one(run, settings):
    """Flower answers for it at once, in its own name."""

    def gone(message, reply):
        error = Message(Error(code=5, reason="node unavailable"), reply_to=message)
        error.metadata.__dict__["_src_node_id"] = 999
        return error

    log = run(settings, altered(3, gone)).go().log
    assert [one["clients"]["2"]["reason"] for one in log.rounds] == ["its node is gone"] * 2


def test_a_client_that_left_is_listed_as_absent(run):
    made = run(small(rounds=3))
    push, seen = made.grid.push_messages, []

    def pushing(messages):
        messages = list(messages)
        replies = push(messages)
        if messages and messages[0].metadata.message_type == "train":
            seen.append(len(messages))
            made.grid.apps.pop(3, None)
        return replies

    made.grid.push_messages = pushing
    log = made.go().log
    assert seen == [3, 2, 2]
    assert [one["clients"]["2"]["status"] for one in log.rounds] == ["ok", "absent", "absent"]
    assert log.rounds[1]["clients"]["2"]["reason"] == "not connected"
    assert log.closed


def test_an_absent_clients_old_answers_may_be_used_for_a_round(run):
    def fail(message, reply):
        return Message(Error(code=2, reason=""), reply_to=message)

    settings = small("fusion.stale=true", rounds=3)
    log = run(settings, altered(3, fail, rounds=(2, 3))).go().log
    assert [one["members"] for one in log.rounds] == [[0, 1, 2], [0, 1, 2], [0, 1]]


def test_an_answer_in_anothers_name_is_refused(run, settings):
    def impersonate(message, reply):
        reply.content[FACTS]["client"] = 0
        return reply

    log = run(settings, altered(2, impersonate)).go().log
    assert "in the name of client 0" in log.rounds[0]["clients"]["1"]["reason"]


def test_too_few_answers_are_not_fused_and_nobody_answering_stops_the_run(run):
    settings = small("fusion.quorum=3")
    log = run(settings, altered(2, with_knowledge(lambda soft: soft * np.nan), rounds=(1,))).go().log
    assert log.rounds[0]["members"] == []
    assert any("nothing was fused" in note for note in log.rounds[0]["notes"])
    assert log.rounds[1]["members"] == [0, 1, 2]

    def all_fail(app):
        def one(message, context):
            if message.metadata.message_type == "train":
                return Message(Error(code=2, reason=""), reply_to=message)
            return app(message, context)

        return dict.fromkeys((1, 2, 3), one)

    with pytest.raises(InputError, match="no client gave an answer"):
        run(settings, all_fail, folder="b").go()


def test_who_does_not_fit_is_turned_away(run, settings):
    def change(key, value):
        def other(message, reply):
            reply.content[FACTS][key] = value
            return reply

        return altered(3, other, only="query")

    for index, (key, value, words) in enumerate(
        [
            ("transfer", "f" * 64, "transfer set"),
            ("class_names", list("abcdefghij"), "classes"),
            ("num_transfer", 10**12, "transfer set"),
            ("client", 0, "partition-id of its own"),
        ]
    ):
        made = run(settings, change(key, value), folder=str(index)).go()
        assert made.log.rounds[0]["members"] == [0, 1]
        assert any(words in note for note in made.log.rounds[0]["notes"])
        assert any(words in line for line in made.said)


def test_a_client_that_cannot_open_its_data_says_why(run, settings):
    def apps(app):
        def broken(message, context):
            context.node_config["partition-id"] = 7
            return app(message, context)

        return {1: app, 2: app, 3: broken}

    made = run(settings, apps).go()
    assert any("partition-id 7" in line for line in made.said)


def test_nobody_there_is_told(run, settings):
    made = run(settings)
    made.grid.apps = {}
    with pytest.raises(InputError, match="0 client"):
        made.go()


MALFORMED = {
    "notes": lambda reply: reply.content[FACTS].update(notes=5),
    "no client": lambda reply: reply.content[FACTS].pop("client"),
    "a client that is text": lambda reply: reply.content[FACTS].update(client="x"),
    "figures of thousands": lambda reply: reply.content[FIGURES].update(
        own_accuracy=1000.0, val_after=5.0, seconds=-1.0
    ),
    "lists of figures": lambda reply: reply.content[FIGURES].update(own_accuracy=[0.1, 0.2]),
    "long notes": lambda reply: reply.content[FACTS].update(notes=["x" * 10_000] * 10_000),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_nothing_that_a_client_writes_ends_the_run(run, settings, kind):
    def change(message, reply):
        MALFORMED[kind](reply)
        return reply

    log = run(settings, altered(2, change)).go().log
    assert log.closed
    assert 0 <= log.rounds[-1]["alma"] <= 1
    assert len(json.dumps(log.rounds)) < 50_000
    if "client" in kind:
        assert log.rounds[0]["clients"]["1"]["status"] == "refused"


@pytest.mark.parametrize("size", [10**15, 10**20, 41])
def test_an_array_that_announces_more_than_it_brings_is_refused(run, settings, size):
    def change(message, reply):
        array = Array(np.zeros((40, 10), dtype=np.float16))
        array.data = array.data.replace(b"(40, 10)", str((size, 10)).encode()).replace(b" " * 20, b"", 1)
        header = array.data.index(b"\n") - 9
        array.data = array.data[:8] + header.to_bytes(2, "little") + array.data[10:]
        reply.content[KNOWLEDGE] = ArrayRecord({"soft": array})
        return reply

    log = run(settings, altered(2, change)).go().log
    assert log.rounds[0]["clients"]["1"]["status"] == "refused"
    assert "no array" in log.rounds[0]["clients"]["1"]["reason"]


def test_a_broken_header_is_refused(run, settings):
    def change(message, reply):
        array = Array(np.zeros((40, 10), dtype=np.float16))
        broken = b"{'descr': '<f2', 'fortran_order': (((((".ljust(117) + b"\n"
        array.data = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + broken
        reply.content[KNOWLEDGE] = ArrayRecord({"soft": array})
        return reply

    log = run(settings, altered(2, change)).go().log
    assert log.rounds[0]["clients"]["1"]["status"] == "refused"


@pytest.mark.parametrize(
    ("key", "value"), [("client", None), ("num_train", "many"), ("num_train", -5), ("class_names", 3)]
)
def test_a_node_that_makes_no_sense_is_turned_away(run, settings, key, value):
    def change(message, reply):
        if value is None:
            reply.content[FACTS].pop(key)
        else:
            reply.content[FACTS][key] = value
        return reply

    made = run(settings, altered(3, change, only="query")).go()
    assert made.log.rounds[0]["members"] == [0, 1]
    assert len([line for line in made.said if "makes no sense" in line]) == 1  # it is asked again, and told once


def test_who_was_turned_away_may_come_back(run):
    def change(message, reply):
        if not seen:
            seen.append(1)
            reply.content[FACTS]["transfer"] = "f" * 64
        return reply

    seen = []
    log = run(small(rounds=2), altered(3, change, only="query")).go().log
    assert [one["members"] for one in log.rounds] == [[0, 1], [0, 1, 2]]


def test_clients_that_are_missing_at_the_end_are_told(run, settings):
    def fail(message, reply):
        return Message(Error(code=2, reason=""), reply_to=message)

    from crossdistill.federated.results import federation_of, results_of

    log = run(settings, altered(3, fail, only="evaluate")).go().log
    assert log.rounds[-1]["clients"]["2"]["status"] == "absent"
    results = results_of([federation_of(settings, log, folder=".")], settings, seconds=1.0)
    assert any("of 2 of 3 clients" in warning for warning in results["warnings"])


def test_a_client_that_missed_a_round_gets_the_common_network(run):
    def fail(message, reply):
        return Message(Error(code=2, reason=""), reply_to=message)

    log = run(small(strategy="fedavg", rounds=2), altered(3, fail, rounds=(2,))).go().log
    final = log.rounds[-1]["clients"].values()
    assert len({one["balanced_accuracy"] for one in final}) == 1


@pytest.mark.parametrize("strategy", ["knfu", "auto", "local", "fedavg"])
def test_a_finished_run_is_left_as_it_is(run, strategy):
    settings = small(strategy=strategy)
    first = run(settings).go().log
    again = run(settings).go().log
    assert again.rounds == first.rounds
    assert again.chosen == first.chosen


def test_a_run_that_is_submitted_anew_starts_anew(run, settings, tmp_path):
    """The clients' folders are those of the run before, whose answers must not come back."""
    short = run(small(rounds=1), folder="a").go()
    assert short.log.closed
    fresh = run(settings, folder="b").go().log
    (tmp_path / "a" / "run").rename(tmp_path / "before")
    again = run(settings, folder="a").go().log
    assert _figures(again) == _figures(fresh)


def test_a_late_client_joins_and_starts_at_the_beginning(run):
    settings = small(rounds=3)
    made = run(settings)
    late, seen = made.grid.apps.pop(3), []
    push = made.grid.push_messages

    def pushing(messages):
        messages = list(messages)
        if messages and messages[0].metadata.message_type == "train":
            seen.append(len(messages))
            if len(seen) == 1:
                made.grid.apps[3] = late
        return push(messages)

    made.grid.push_messages = pushing
    log = made.go().log
    assert [one["members"] for one in log.rounds] == [[0, 1], [0, 1, 2], [0, 1, 2]]
    assert log.rounds[1]["clients"]["2"]["status"] == "ok"
    # It was not there in the first round, and its untrained network says nothing about it.
    assert "2" not in log.rounds[0]["clients"] or log.rounds[0]["clients"]["2"].get("own_accuracy") is None


def test_a_client_without_images_takes_part_without_a_say(run, settings, monkeypatch):
    import dataclasses

    from crossdistill.federated import client_app
    from crossdistill.federated.sites import Images, sites_of

    def emptied(given):
        sites = list(sites_of(given))
        none = Images(sites[1].train.source, sites[1].train.ids[:0])
        sites[1] = dataclasses.replace(sites[1], train=none, val=none, shares=np.zeros(10))
        return tuple(sites)

    monkeypatch.setattr(client_app, "sites_of", emptied)
    log = run(settings).go().log
    assert log.rounds[0]["members"] == [0, 2]
    assert log.rounds[0]["clients"]["1"]["status"] == "ok"
    assert "own_accuracy" not in log.rounds[0]["clients"]["1"] or log.rounds[0]["clients"]["1"]["own_accuracy"] is None


def test_a_killed_server_goes_on_to_the_same_end(run):
    settings = small(rounds=3, strategy="auto")
    whole = run(settings, folder="a").go().log

    class Killed(BaseException):
        pass

    broken = run(settings, folder="b")
    push = broken.grid.push_messages

    def dying(messages):
        messages = list(messages)
        replies = push(messages)
        if messages and messages[0].metadata.group_id == "2":
            raise Killed  # after the clients have done their part of round 2
        return replies

    broken.grid.push_messages = dying
    with pytest.raises(Killed):
        broken.go()
    again = run(settings, folder="b")
    assert again.federation.offset == 1
    log = again.go().log
    assert _figures(log) == _figures(whole)
    assert log.chosen == whole.chosen


def test_a_server_killed_before_the_closing_closes(run, settings):
    whole = run(settings, folder="a").go().log
    broken = run(settings, folder="b")
    push = broken.grid.push_messages

    def dying(messages):
        messages = list(messages)
        if messages and messages[0].metadata.message_type == "evaluate":
            raise KeyboardInterrupt
        return push(messages)

    broken.grid.push_messages = dying
    with pytest.raises(KeyboardInterrupt):
        broken.go()
    log = run(settings, folder="b").go().log
    assert log.closed
    assert _figures(log) == _figures(whole)


def test_damaged_records_are_told(run, settings):
    made = run(settings).go()
    (made.log.folder / "server/state.json").write_text("{")
    with pytest.raises(InputError, match="records of the server"):
        run(settings)


def test_figures_that_are_no_numbers_do_not_stop_the_run(run, settings):
    def change(message, reply):
        reply.content[FIGURES]["own_accuracy"] = float("nan")
        return reply

    log = run(settings, altered(2, change)).go().log
    assert log.rounds[0]["alma"] is not None
    assert np.isfinite(log.rounds[0]["alma"])


@pytest.mark.parametrize("kind", ["fp32", "top_k"])
def test_other_transports_carry_what_they_promise(run, kind):
    log = run(small(f"transport.kind={kind}", "transport.top_k=3")).go().log
    payload = {"fp32": 40 * 10 * 4, "top_k": 40 * 3 * (2 + 1)}[kind]
    sent = log.rounds[0]["clients"]["0"]["bytes_up"]
    assert payload < sent <= payload + 320


def test_networks_of_several_architectures_have_no_mean(run):
    with pytest.raises(InputError, match="one architecture"):
        run(small(strategy="fedavg", models=["mlp", "transformer"])).go()
