"""Faults and attacks on a deployed federation: real processes over TLS, each site failing or lying in its own way.

Every site has folders of its own, so that what it lacks is missing on its machine and not in a table of ours. What a
single answer can hold besides is tried on a grid in one process (``tests/unit/federated``), where it costs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("psutil")  # comes with accelerate

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from crossdistill.federated.app_folder import CLIENT_APP, write_app
from crossdistill.federated.certificates import make_certificates
from crossdistill.federated.client_app import build_app
from crossdistill.federated.direct import DirectGrid
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import load_settings
from samples.machines import (
    PATIENCE,
    Machines,
    free_ports,
    recorded,
    register,
    start_link,
    start_node,
    statuses,
)

pytestmark = pytest.mark.slow  # twenty to forty starts of a process that imports torch, a launch

CLASSES = ("0", "1", "2", "3")
HONEST = ("north", "east", "south")
"""The first three sites of every launch, as clients 0, 1 and 2."""

LEARNS = {"name": "timm/resmlp_tiny", "image_size": 16, "args": {"patch_size": 4, "embed_dim": 32, "num_blocks": 2}}
"""A network that knows its images after one round, so that honest sites agree on them and the guard can tell."""

SETTINGS = {
    "models": [LEARNS],
    "rounds": 2,
    "data": {"source": "digits"},
    "classes": CLASSES,
    "train": {"epochs": 20, "batch_size": 8, "lr": 3e-3},
    "tune": {"epochs": 1},
    "fusion": {"quorum": 2},
    "patience": PATIENCE,
    "gather": PATIENCE,
    "device": "cpu",
}

MISBEHAVING = '''
"""A site that misbehaves as its own facts say, with a word for each round; all else is what honest sites run."""

import fcntl
import os
import signal
import time
from pathlib import Path


def take_turn():
    """Wait until one of four places is free; it is kept until this process ends, or the file is closed.

    Before torch is imported: all sites at once would take the memory of ten machines.
    """
    folder = Path(os.environ["FLWR_HOME"]).parents[1]
    places = [folder.joinpath(f"turn-{number}").open("w") for number in range(4)]
    while True:
        for place in places:
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return place
            except BlockingIOError:
                time.sleep(0.05)


turn = take_turn()

import numpy as np
from crossdistill.federated.client_app import build_app
from flwr.app import Array, ArrayRecord
from flwr.clientapp import ClientApp

ALTERED = {
    "nan": lambda soft: np.where(np.arange(soft.shape[1]) == 1, np.nan, soft),
    "shape": lambda soft: soft[:-1],
    "classes": lambda soft: np.concatenate([soft, soft[:, :1]], axis=1),
    "oversized": lambda soft: np.tile(soft, (10_000, 1)),
    "shuffled": lambda soft: soft[np.random.default_rng(0).permutation(len(soft))],
    "boastful": lambda soft: soft,
    "one-class": lambda soft: np.eye(soft.shape[1], dtype=soft.dtype)[np.full(len(soft), 3)],
}
honest = build_app({})
app = ClientApp()


@app.query()
def join(message, context):
    return honest(message, context)


@app.train()
def carry_out(message, context):
    words = dict(enumerate(context.node_config.get("attacks", "").split(), start=1))
    word = words.get(message.content["task"]["round"], "honest")
    if word == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "waits":
        turn.close()  # whoever sleeps holds up nobody
    while word == "waits" and not Path(context.node_config["until"]).exists():
        time.sleep(0.1)
    reply = honest(message, context)
    if word in ALTERED:
        soft = reply.content["knowledge"]["soft"].numpy()
        array = Array(ALTERED[word](soft))
        if word == "boastful":  # its header announces a hundred million times what follows
            array.data = array.data.replace(b"(120, 4), }        ", b"(12000000000, 4), }")
        reply.content["knowledge"] = ArrayRecord({"soft": array})
    if word == "nameless":
        del reply.content["facts"]["client"]
    return reply


@app.evaluate()
def close(message, context):
    return honest(message, context)
'''


class Images:
    """Images of four digits, dealt out to the folders of sites; none is at two sites."""

    def __init__(self, root: Path) -> None:
        found = load_digits()
        self.root, self.targets = root, found.target
        self.pixels = (found.images * 15.9).astype(np.uint8)
        self.left = list(np.random.default_rng(0).permutation(np.flatnonzero(found.target < len(CLASSES))))
        self.transfer = root / "transfer"
        self.write(self.transfer, self.take(120), sorted_=False)
        self.tested = self.take(80)

    def take(self, count: int, classes: Sequence[int] = range(len(CLASSES))) -> list[int]:
        """The next images of these classes."""
        taken = [one for one in self.left if self.targets[one] in classes][:count]
        assert len(taken) == count
        self.left = [one for one in self.left if one not in taken]
        return taken

    def write(self, folder: Path, ids: Sequence[int], *, sorted_: bool = True) -> None:
        for one in ids:
            place = folder / str(self.targets[one]) if sorted_ else folder
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels[one]).save(place / f"{one:04d}.png")

    def site(self, name: str, ids: Sequence[int]) -> Path:
        """The folder of a site with these images, tested on the classes that it has; with none, its classes alone."""
        folder = self.root / name
        held = {int(self.targets[one]) for one in ids}
        self.write(folder / "train", ids)
        self.write(folder / "test", [one for one in self.tested if self.targets[one] in held])
        for word in CLASSES if not ids else ():
            (folder / "train" / word).mkdir(parents=True)
        return folder

    def facts(self, number: int, name: str, ids: Sequence[int]) -> dict[str, int | str]:
        """What a site's node says of itself."""
        folder = self.site(name, ids)
        return {
            "site": name,
            "partition-id": number,
            "data": f"folder:{folder}",
            "transfer": f"folder:{self.transfer}",
        }


Facts = Mapping[str, int | str]


@dataclass
class Launch:
    """A SuperLink, and what is needed to start nodes and runs."""

    machines: Machines
    folder: Path
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.keys = make_certificates(self.folder / "certs", hosts=("localhost",), nodes=self.names)
        self.port, *ports = free_ports(1 + len(self.names))
        self.ports = dict(zip(self.names, ports, strict=True))
        self.begin()
        self.nodes = dict(zip(self.names, register(self.machines, self.keys, self.link, self.names), strict=True))

    def begin(self) -> None:
        """Start the SuperLink, or start it again."""
        self.link = start_link(self.machines, self.keys, self.port, "--database", self.folder / "superlink.db")

    def node(self, name: str, facts: Facts) -> None:
        key, port = self.keys.node(name), self.ports[name]
        start_node(self.machines, name, facts, link=self.link, authority=self.keys.authority, key=key, port=port)

    def out(self, app: str) -> Path:
        return self.folder / f"{app}-run"

    def write(self, app: str, settings: dict, *, misbehaving: bool = False) -> None:
        """An app folder; where sites misbehave, they run what wraps our app."""
        written = write_app(self.folder / app, load_settings(settings).model_dump_json(), out=self.out(app))
        if misbehaving:
            text = written.read_text()
            assert CLIENT_APP in text
            written.write_text(text.replace(CLIENT_APP, "misbehaving:app"))
            (self.folder / app / "misbehaving.py").write_text(MISBEHAVING)

    def submit(self, app: str, *more: object) -> None:
        self.machines.start("operator", "flwr", "run", self.folder / app, "fed", "--stream", *more)

    def reaches(self, round_: int) -> None:
        """Wait until so many rounds are fused and recorded."""
        alive = ("superlink", "operator", *HONEST)
        self.machines.until(lambda: len(self.rounds()) >= round_, f"the record of round {round_}", alive=alive)

    def runs(self) -> list[dict]:
        """All runs, the last one first."""
        return self.machines.call("list", "fed")["runs"]

    def finish(self) -> None:
        """Wait for the end of the run that was submitted last, which must be a good one."""
        assert self.machines.ended("operator") == 0, self.machines.story()
        assert self.runs()[0]["status"] == "finished:completed", self.machines.story()

    def rounds(self, app: str = "trial") -> list[dict]:
        return recorded(self.out(app))


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    made = []

    def make(name: str) -> Machines:
        made.append(Machines(tmp_path_factory.mktemp(name), poll=0.5))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.stop()


def client(one_round: dict, number: int) -> dict:
    return one_round["clients"][str(number)]


def weights_of(one_round: dict, teacher: int, receivers: Sequence[int]) -> np.ndarray:
    """How much these clients learn from that one."""
    places = one_round["members"]
    matrix = np.array(one_round["weights"])
    return matrix[[places.index(one) for one in receivers], places.index(teacher)]


# Sites that lie, and sites that have next to nothing ------------------------------------------------------------------

LIES = {
    "poisoned": "nan shape",
    "bloated": "classes oversized",
    "rude": "nameless boastful",
    "shuffled": "shuffled shuffled",
}
ATTACKED = (*HONEST, *LIES, "single", "smallest", "empty")


@pytest.fixture(scope="module")
def attacked(machines):
    """Three honest sites, four that lie in both rounds, and three that have few images or none; the guard is on."""
    made = machines("attacked")
    launch, images = Launch(made, made.folder, ATTACKED), Images(made.folder / "images")
    few = {"single": images.take(20, [1]), "smallest": images.take(1, [0]) + images.take(1, [1]), "empty": []}
    for number, name in enumerate(ATTACKED):
        facts = images.facts(number, name, few[name] if name in few else images.take(70))
        launch.node(name, {**facts, "attacks": LIES.get(name, "")})
    settings = {**SETTINGS, "clients": len(ATTACKED), "fusion": {"quorum": 2, "guard": True}}
    launch.write("trial", settings, misbehaving=True)
    launch.submit("trial")
    launch.finish()
    return launch


@pytest.mark.parametrize(
    ("name", "round_", "reason"),
    [
        ("poisoned", 1, "probabilities that are not finite"),
        ("poisoned", 2, "(119, 4), where (120, 4) was expected"),
        ("bloated", 1, "(120, 5), where (120, 4) was expected"),
        ("bloated", 2, "9,600,128 bytes"),
        ("rude", 1, "does not say whose it is"),
        ("rude", 2, "no array"),
    ],
)
def test_an_answer_of_another_form_is_refused_with_its_reason(attacked, name, round_, reason):
    own, number = attacked.rounds()[round_ - 1], ATTACKED.index(name)
    assert client(own, number)["status"] == "refused"
    assert reason in client(own, number)["reason"]
    assert number not in own["members"]
    assert any(f"client {number} ({name}) refused" in note and reason in note for note in own["notes"])


def test_the_others_go_on_and_are_fused(attacked):
    for one in attacked.rounds():
        assert [client(one, number)["status"] for number in range(3)] == ["ok"] * 3
        able = {int(number) for number, status in statuses(one).items() if status == "ok"}
        assert set(one["members"]) == able - {ATTACKED.index("smallest")}
        np.testing.assert_allclose(np.sum(one["weights"], axis=1), 1.0, atol=1e-5)
        for teacher in range(3):  # honest sites hear one another
            assert (weights_of(one, teacher, range(3)) > 0.05).all()
        for number in range(3):  # and learnt from what was fused, before the next round or the end
            assert client(one, number)["val_after"] is not None


def test_a_site_that_shuffles_its_answers_is_not_heard(attacked):
    number = ATTACKED.index("shuffled")
    for one in attacked.rounds():
        assert client(one, number)["status"] == "ok"  # it looks like any other
        assert (weights_of(one, number, range(3)) == 0).all()
        assert any(f"client {number}: its answers do not belong to the images" in note for note in one["notes"])


def test_a_site_with_images_of_one_class_takes_part(attacked):
    number = ATTACKED.index("single")
    for one in attacked.rounds():
        assert statuses(one).get(str(number)) == "ok", one["notes"]
        assert client(one, number)["own_accuracy"] is not None


def test_a_site_with_a_single_image_to_train_on_takes_part_without_a_say(attacked):
    """It learns from the others, and has nothing to tell."""
    number = ATTACKED.index("smallest")
    for one in attacked.rounds():
        assert client(one, number)["status"] == "ok"
        assert client(one, number)["own_accuracy"] is not None
        assert number not in one["members"]
        assert any(f"client {number}: 1 image(s) to train on" in note for note in one["notes"])


def test_a_site_without_images_is_turned_away_with_the_reason(attacked):
    first, second = attacked.rounds()
    for one in (first, second):
        assert str(ATTACKED.index("empty")) not in statuses(one)
    (note,) = [note for note in first["notes"] if "at least one file that Pillow opens" in note]
    assert note.startswith("turned away")
    assert str(attacked.folder) not in note  # paths stay at the site, which shows them on its own console
    assert "which holds no image" in attacked.machines.log("empty")


# Sites that die, miss the deadline, come late, or answer one class ----------------------------------------------------

DEADLINE = 90
"""Seconds; honest sites take a quarter of it, all at once on two cores."""

LATE = (*HONEST, "stubborn", "asleep", "dying", "late")


@pytest.fixture(scope="module")
def delayed(machines):
    """One site answers round 1 when it is over, one dies in it, one comes in it; one says one class in both."""
    made = machines("delayed")
    launch, images = Launch(made, made.folder, LATE), Images(made.folder / "images")
    attacks = {"stubborn": "one-class one-class", "asleep": "waits", "dying": "dies"}
    alarm = made.folder / "alarm"
    facts = {
        name: {**images.facts(number, name, images.take(70)), "attacks": attacks.get(name, ""), "until": str(alarm)}
        for number, name in enumerate(LATE)
    }
    for name in LATE[:-1]:
        launch.node(name, facts[name])
    settings = {**SETTINGS, "clients": len(LATE) - 1, "patience": DEADLINE}
    launch.write("trial", settings, misbehaving=True)
    launch.submit("trial")
    living = ("superlink", "operator", *HONEST)
    made.until(lambda: "ROUND 1]" in made.log(HONEST[0]), "round 1 at a site", alive=living)
    launch.node("late", facts["late"])
    launch.reaches(1)
    alarm.touch()
    launch.finish()
    return launch


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("asleep", f"no answer within {DEADLINE} s"),
        ("dying", "no answer"),  # Flower may notice before the deadline: about a minute after
    ],
)
def test_who_dies_or_misses_the_deadline_is_absent_and_comes_back(delayed, name, reason):
    first, second = delayed.rounds()
    number = LATE.index(name)
    assert client(first, number)["status"] == "absent"
    assert client(first, number)["reason"].startswith(reason)
    assert number not in first["members"]
    assert any(f"client {number} ({name}) absent" in note for note in first["notes"])
    assert client(second, number)["status"] == "ok"
    assert number in second["members"]


def test_the_round_is_made_of_those_that_answered(delayed):
    first, second = delayed.rounds()
    assert first["members"] == [0, 1, 2, LATE.index("stubborn")]
    assert second["members"] == list(range(len(LATE)))
    assert [client(second, number)["val_after"] is not None for number in range(len(LATE))] == [True] * len(LATE)


def test_a_site_that_comes_late_joins_the_next_round(delayed):
    first, second = delayed.rounds()
    number = LATE.index("late")
    assert statuses(first).get(str(number)) is None
    assert client(second, number)["status"] == "ok"
    assert (weights_of(second, number, range(3)) > 0.01).all()  # and is heard


def test_a_site_that_answers_one_class_for_everything_gets_next_to_no_weight(delayed):
    number = LATE.index("stubborn")
    for one in delayed.rounds():
        assert client(one, number)["status"] == "ok"
        assert (weights_of(one, number, range(3)) < 1e-6).all()
        for teacher in range(3):
            assert (weights_of(one, teacher, range(3)) > 0.01).all()


# A server that is killed ----------------------------------------------------------------------------------------------

LONGER = {**SETTINGS, "clients": len(HONEST), "rounds": 3, "fusion": {"quorum": 3}}


@dataclass
class Resumed:
    launch: Launch
    facts: dict[str, Facts]
    seen: list[list[dict]]
    runs: list[dict]


@pytest.fixture(scope="module")
def resumed(machines):
    """After round 1 the ServerApp is killed, after round 2 the whole server; each time the operator goes on."""
    made = machines("resumed")
    launch, images = Launch(made, made.folder, HONEST), Images(made.folder / "images")
    facts = {name: images.facts(number, name, images.take(70)) for number, name in enumerate(HONEST)}
    for name in HONEST:
        launch.node(name, {**facts[name], "attacks": "nan"})  # of which only a run of the other app takes notice
    launch.write("trial", LONGER)
    launch.submit("trial")
    launch.reaches(1)
    kill_server_app(made)
    seen = [launch.rounds()]
    made.until(lambda: launch.runs()[0]["status"].startswith("finished"), "the end of the killed run", every=5)
    launch.submit("trial", "--run-config", "resume=true")
    launch.reaches(2)
    made.cut_power("superlink")
    seen.append(launch.rounds())
    launch.begin()
    launch.submit("trial", "--run-config", "resume=true")
    launch.finish()
    return Resumed(launch, facts, seen, launch.runs())


def kill_server_app(machines: Machines) -> None:
    family = machines.family("superlink")
    victims = [one for one in family if any(Path(word).name == "flwr-serverapp" for word in one.cmdline())]
    assert len(victims) == 1, [one.cmdline() for one in family]
    victims[0].kill()


def test_a_killed_server_ends_the_run_and_not_its_record(resumed):
    assert [run["status"] for run in resumed.runs] == ["finished:completed", "finished:failed", "finished:failed"]
    assert [[one["round"] for one in rounds] for rounds in resumed.seen] == [[1], [1, 2]]
    assert (resumed.launch.out("trial") / "report.html").exists()


def test_a_resumed_run_ends_as_one_that_was_never_killed(resumed, tmp_path):
    settings = load_settings(LONGER)
    grid, log = DirectGrid(build_app({"folder": str(tmp_path)}), len(HONEST)), RoundLog(tmp_path)
    for context, facts in zip(grid.contexts.values(), resumed.facts.values(), strict=True):
        context.node_config.clear()
        context.node_config.update(facts)
    Federation(settings, log, print).run(grid)
    found = resumed.launch.rounds()
    assert [one["round"] for one in found] == [1, 2, 3]
    for one, whole in zip(found, log.rounds, strict=True):
        assert one["members"] == whole["members"] == [0, 1, 2]
        assert one["notes"] == whole["notes"] == []
        assert (one["weights"] is None) == (whole["weights"] is None)
        for number in range(3):
            mine, other = client(one, number), client(whole, number)
            for name in ("status", "own_accuracy", "balanced_accuracy", "val_before", "val_after", "rejected"):
                assert mine[name] == other[name], (one["round"], number, name)
    for one, whole in ((found[0], log.rounds[0]), (found[-1], log.rounds[-1])):  # those between are not kept
        assert np.ptp(one["weights"]) > 1e-2
        np.testing.assert_allclose(one["weights"], whole["weights"], rtol=1e-5)


def test_a_run_without_a_usable_answer_fails_and_says_why(resumed):
    """The same nodes, all of which now answer what is no number."""
    launch = resumed.launch
    launch.write("hopeless", {**LONGER, "seed": 1}, misbehaving=True)
    launch.submit("hopeless")
    launch.machines.ended("operator")
    assert launch.runs()[0]["status"] == "finished:failed"
    said = launch.machines.log("operator")
    assert "round 1, in which no client gave an answer that can be used (probabilities that are not finite" in said
    assert launch.rounds("hopeless") == []
    assert not (launch.out("hopeless") / "results.json").exists()
