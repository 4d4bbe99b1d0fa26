"""Panels of a federated run: figures are those of the record, names are text, and damage is told."""

import base64
import copy
import html as entities
import io
import json
import re

import numpy
import pytest
from PIL import Image

from crossdistill.errors import InputError
from crossdistill.federated.panel_clients import helped, labels, weights
from crossdistill.federated.panels import accuracy, automatic, strategies, traffic, troubles
from crossdistill.federated.records import as_federation, read_federation
from crossdistill.report import read_run, write_report
from samples.federation_results import federation_results, one_run, write_federation
from samples.html_page import Page
from samples.run_folder import write_run

PANELS = (strategies, automatic, accuracy, labels, weights, helped, traffic, troubles)
EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


@pytest.fixture
def of(tmp_path):
    """The HTML of a panel of these results, with plain spaces; ``None`` where it has nothing to say."""

    def show(panel, results=None, **options):
        results = federation_results(**options) if results is None else results
        found = panel(read_run(write_federation(tmp_path, results)))
        if found is None:
            return None
        assert Page(str(found.html)).elements, "tags balance"
        return str(found.html).replace("\N{NO-BREAK SPACE}", " ")

    return show


def trio(**changes):
    """Results of one strategy on three clients and two rounds, with other entries."""
    return federation_results(federation=[one_run("knfu", 0, clients=3, rounds=2, classes=3) | changes])


def entry(results):
    return results["federation"][0]


def column(html, name):
    """The cells of a column of all tables, as text."""
    found = re.findall(rf'data-label="{re.escape(name)}">(.*?)</td>', html)
    return [entities.unescape(re.sub("</?(bdi|span)>", "", cell)) for cell in found]


def captions(html):
    return [entities.unescape(text) for text in re.findall("<figcaption>(.*?)</figcaption>", html)]


def alt_texts(html):
    return [entities.unescape(text) for text in re.findall(r'<svg[^>]*aria-label="([^"]*)"', html)]


def drawings(html):
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def written(svg):
    """Texts in a figure."""
    return [entities.unescape(text) for text in re.findall(r"<text[^>]*>(.*?)</text>", svg)]


def places(svg):
    """Texts in a figure with where they stand, x to the right and y downwards."""
    found = re.findall(r'<text [^>]*x="([-\d.]+)" y="([-\d.]+)"[^>]*>(.*?)</text>', svg)
    return [(entities.unescape(text), float(x), float(y)) for x, y, text in found]


def num_lines(svg, series):
    """Curves of more than one point in the colour of a series."""
    paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--series-{series}\)', svg)
    return sum("L" in path for path in paths)


def opacities(svg):
    """Of each cell of a heat map, read from the middle of the cells of its picture."""
    data, _, transform = re.search(
        r'href="data:image/png;base64,\s*([^"]+)"(.*?)transform="matrix\(([^)]+)\)', svg, re.DOTALL
    ).groups()
    across, aslant, askew, down, *_ = map(float, transform.split())
    assert across > 0, "from left to right"
    assert down > 0, "from top to bottom"
    assert aslant == askew == 0
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))[..., 3] / 255


def middles(picture, num_rows, num_columns):
    height, width = picture.shape[0] // num_rows, picture.shape[1] // num_columns
    return picture[height // 2 :: height, width // 2 :: width]


def test_other_runs_have_none_of_them(tmp_path):
    run = read_run(write_run(tmp_path))
    (tmp_path / "results.json").unlink()  # nothing is read of them again
    assert [panel(run) for panel in PANELS] == [None] * len(PANELS)


def test_a_run_that_has_not_begun_has_none_of_them(of):
    assert [of(panel, federation_results(federation=[])) for panel in PANELS] == [None] * len(PANELS)


def test_strategies_are_told_by_their_means_over_seeds(of):
    results = federation_results(strategies=("knfu", "local"), seeds=(0, 1), clients=3)
    ends = [(0.90, 0.60, 0.80, 0.05, 10, 3), (0.94, 0.64, 0.84, 0.07, 12, 1)]
    for one, figures in zip(results["federation"], ends * 2, strict=True):
        keys = ("alma", "alma_balanced", "worst", "sd", "offered", "rejected")
        one["final"] = dict(zip(keys, figures, strict=True))
    results["federation"][2]["final"] = results["federation"][3]["final"] = {"offered": 0, "rejected": 0}
    html = of(strategies, results)
    assert column(html, "Own mix") == ["92.0 ± 2.8 % (2 seeds)", "– (2 seeds)"]
    assert column(html, "All classes") == ["62.0 ± 2.8 %", "–"]
    assert column(html, "Worst client") == ["82.0 ± 2.8 %", "–"]
    assert column(html, "Spread") == ["6.0", "–"]
    assert column(html, "Rejected") == ["4 of 22", "–"]
    assert column(html, "Sent") == ["5.74 kB", "0 B"]
    assert re.findall('<th scope="row"[^>]*>(.*?)</th>', html) == ["KnFu", "Local"]
    assert column(html, "What it does")[1] == "No exchange: every client trains alone."
    facts = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", html))
    assert facts["clients"] == "3"
    assert facts["partition"] == "dirichlet, alpha 0.5"
    assert facts["transfer set"] == "digits, 287 images"
    assert facts["networks"] == "resnet10t, vit_tiny_patch16_224, resmlp_tiny"


def test_facts_that_are_not_known_are_left_out(of):
    results = trio(partition=None, transfer=None)
    for client in entry(results)["clients"]:
        client.update(model=None, num_train=None)
    assert re.findall("<dt>(.*?)</dt>", of(strategies, results)) == ["clients"]


@pytest.mark.parametrize("clients", [3, 10, 100])
def test_every_client_is_a_faint_line_beside_the_mean(of, clients):
    html = of(accuracy, clients=clients)
    assert captions(html) == ["KnFu: on each client's own mix of classes", "KnFu: on all classes equally"]
    assert [num_lines(svg, 0) for svg in drawings(html)] == [clients + 1] * 2
    assert "<details" not in html
    assert 'class="legend"' not in html


def test_the_mean_is_that_of_the_record(of):
    results = trio()
    for record, own, balanced in zip(entry(results)["rounds"], (0.5, 0.7), (0.3, 0.4), strict=True):
        record.update(alma=own, alma_balanced=balanced)
    own, balanced = alt_texts(of(accuracy, results))
    assert "Accuracy of 3 clients by KnFu, on each client's own mix of classes" in own
    assert own.endswith("the mean goes from 50.0 % to 70.0 %.")
    assert balanced.endswith("the mean goes from 30.0 % to 40.0 %.")


def test_several_strategies_have_a_colour_each_and_their_seeds_behind_them(of):
    html = of(accuracy, strategies=("knfu", "local", "fedmd"), seeds=(0, 1), clients=3)
    own, balanced, *single = drawings(html)
    for svg in (own, balanced):
        assert [num_lines(svg, series) for series in range(4)] == [3, 3, 3, 0], "two seeds and their mean"
    assert re.findall("</span>(.*?)</li>", html) == ["KnFu", "Local", "FedMD"]
    assert len(single) == 6
    assert [num_lines(single[place], place // 2) for place in range(6)] == [4] * 6
    assert re.findall("<summary>(.*?)</summary>", html) == ["KnFu, seed 0", "Local, seed 0", "FedMD, seed 0"]
    assert re.findall("<details( open)?", html) == [" open", "", ""]
    text = alt_texts(html)[0]
    assert text.count("the mean goes from") == 3


def test_seeds_that_measured_in_other_rounds_have_a_mean_where_they_meet(of):
    results = federation_results(seeds=(0, 1), clients=3, rounds=3)
    first, second = (one["rounds"] for one in results["federation"])
    first[0]["alma"], second[2]["alma"] = None, None
    first[1]["alma"], second[1]["alma"] = 0.5, 0.7
    assert "the mean goes from 60.0 % to 60.0 %" in alt_texts(of(accuracy, results))[0]


def test_without_any_measurement_there_are_no_curves(of):
    results = trio()
    for record in entry(results)["rounds"]:
        for done in record["clients"].values():
            done.update(own_accuracy=None, balanced_accuracy=None)
    assert of(accuracy, results) is None


def test_weights_are_drawn_as_they_are(of):
    matrix = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.004, 0.096, 0.9]]
    results = trio()
    entry(results)["rounds"][1].update(members=[2, 0, 1], weights=matrix)
    html = of(weights, results)
    first, last = drawings(html)
    assert captions(html) == ["round 1", "round 2"]
    shown = middles(opacities(last), 3, 3)
    ordered = numpy.argsort(shown, axis=None)[::-1]
    assert numpy.array_equal(shown > 0, numpy.array(matrix) > 0)
    assert sorted(ordered[:2]) == [4, 8], "the strongest cells"
    assert shown[1, 1] == pytest.approx(0.8, abs=0.01)
    assert shown[0, 1] == shown[0, 2] < shown[0, 0]
    assert shown[2, 0] < shown[2, 1] < shown[0, 1]
    texts = written(last)
    assert [text for text in texts if text.isdigit()] == ["50", "25", "25", "100", "10", "90"], "row by row"
    names = [text for text in texts if text.startswith("client")]
    assert names == ["client 2", "client 0", "client 1"] * 2
    spots = places(last)
    below, beside = spots[:3], spots[4:7]
    (first_25, second_25), (ten,) = ([spot for spot in spots if spot[0] == text] for text in ("25", "10"))
    assert [first_25[1], second_25[1]] == pytest.approx([below[1][1], below[2][1]]), "taught by clients 0 and 1"
    assert first_25[2] == second_25[2] == pytest.approx(beside[0][2], abs=4), "to client 2, in the first row"
    assert (ten[1], ten[2]) == (pytest.approx(below[1][1]), pytest.approx(beside[2][2], abs=4))
    assert beside[0][2] < beside[1][2] < beside[2][2], "rows go down"
    assert below[0][1] < below[1][1] < below[2][1], "columns go right"
    assert alt_texts(html)[1] == (
        "Weights by which 3 clients learn from one another by KnFu in round 2: 80 % from themselves and from 1.6 "
        "clients in effect, on average; most of all client 2 from client 0, 25 %."
    )
    assert [text for text in written(first) if text.isdigit()] == ["33"] * 9


@pytest.mark.parametrize(
    ("clients", "names", "numbers"), [(3, 3, True), (10, 10, True), (20, 20, False), (100, 20, False)]
)
def test_weights_stay_legible_for_any_number_of_clients(of, clients, names, numbers):
    _, svg = drawings(of(weights, clients=clients, rounds=5))
    texts = written(svg)
    assert sum(text.startswith("client") for text in texts) == 2 * names
    assert "client 0" in texts
    assert any(text.isdigit() for text in texts) == numbers
    picture = opacities(svg)
    shown = picture if clients == 100 else middles(picture, clients, clients)
    assert shown.shape == (clients, clients)
    assert (shown.argmax(axis=1) == numpy.arange(clients)).all(), "each learns most from itself"
    assert len(svg) < 60_000


def test_an_even_weight_looks_the_same_for_any_number_of_clients(of):
    shown = [
        opacities(drawings(of(weights, clients=clients, strategies=("fedmd",)))[0]).max() for clients in (3, 10, 100)
    ]
    assert shown == pytest.approx([0.2] * 3, abs=0.003)


def test_weights_that_never_change_are_drawn_once(of):
    results = trio()
    for record in entry(results)["rounds"]:
        record.update(members=[0, 1, 2], weights=[[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    html = of(weights, results)
    assert captions(html) == ["rounds 1 to 2, alike"]
    assert alt_texts(html)[0].endswith("100 % from themselves and from 1.0 clients in effect, on average.")


def test_strategies_without_weights_have_no_matrix(of):
    assert of(weights, strategies=("local", "fedavg"), clients=3) is None
    assert of(helped, strategies=("local", "fedavg"), clients=3) is None
    html = of(weights, strategies=("local", "knfu"), clients=3)
    assert len(drawings(html)) == 2


def test_labels_of_two_classes_are_bars_as_long_as_their_counts(of):
    results = federation_results(clients=3, classes=2)
    for client, counts in zip(entry(results)["clients"], ([30, 10], [0, 40], [20, 0]), strict=True):
        client["histogram"] = counts
    entry(results)["class_names"] = ["healthy", "ill"]
    html = of(labels, results)
    (svg,) = drawings(html)
    assert re.findall("</span>(.*?)</li>", html) == ["healthy", "ill"]
    healthy, ill = (_bars(svg, series) for series in (0, 1))
    unit = (healthy[0][1] - healthy[0][0]) / 30
    assert [round((end - start) / unit) for start, end in healthy] == [30, 0, 20]
    assert [round((end - start) / unit) for start, end in ill] == [10, 40, 0]
    assert [start for start, _ in ill] == pytest.approx([end for _, end in healthy]), "one after the other"
    assert len({round(start, 3) for start, _ in healthy}) == 1
    assert alt_texts(html) == [
        "Training images by class of 3 clients: client 0 has 40, most of class healthy (30); client 1 has 40, most of "
        "class ill (40); client 2 has 20, most of class healthy (20)."
    ]


def _bars(svg, series):
    """Left and right end of each bar of a series."""
    paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: var\(--series-{series}\)', svg)
    across = [[float(x) for x in re.findall(r"[ML] (-?[\d.]+)", path)] for path in paths]
    return [(min(one), max(one)) for one in across]


@pytest.mark.parametrize(("clients", "classes"), [(10, 10), (3, 20), (100, 100)])
def test_labels_of_more_classes_are_a_map(of, clients, classes):
    results = federation_results(clients=clients, classes=classes)
    (svg,) = drawings(of(labels, results))
    counts = numpy.array([client["histogram"] for client in entry(results)["clients"]])
    picture = opacities(svg)
    shown = picture if max(clients, classes) > 32 else middles(picture, clients, classes)
    assert shown.shape == counts.shape
    assert numpy.array_equal(shown > 0, counts > 0)
    assert shown.argmax() in numpy.flatnonzero(counts == counts.max())
    if clients == 10:
        numbers = [int(text) for text in written(svg) if text.isdigit()]
        assert numbers == [*range(10), *counts.sum(axis=1), *counts[counts > 0]], "classes, totals, cells"


def test_labels_are_left_out_where_unknown(of):
    assert of(labels, clients=3, told=False) is None
    results = federation_results(clients=3, classes=10)
    entry(results)["clients"][1]["histogram"] = None
    html = of(labels, results)
    assert "Not known of 1 more." in html
    assert "client 1" not in written(drawings(html)[0])


def test_who_helped_whom(of):
    results = trio()
    names = iter(("North", "South", ""))
    for client in entry(results)["clients"]:
        client["name"] = next(names)
    last = entry(results)["rounds"][1]
    last.update(members=[0, 1, 2], weights=[[0.5, 0.2, 0.3], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]])
    for key, before, after, rejected in (("0", 0.8, 0.7, True), ("1", 0.5, 0.53, False), ("2", 0.6, 0.6, False)):
        last["clients"][key].update(
            val_before=before, val_after=after, rejected=rejected, own_accuracy=0.9, balanced_accuracy=0.6
        )
    html = of(helped, results)
    assert column(html, "Learns from") == [
        "client 2 (30 %), South (20 %)",
        "hardly anyone else",
        "North (25 %), South (25 %)",
    ]
    assert column(html, "Itself") == ["50 %", "100 %", "50 %"]
    assert column(html, "In effect") == ["2.6", "1.0", "2.7"]
    assert column(html, "Rejected") == ["1 of 1", "0 of 1", "0 of 1"]
    assert column(html, "Change") == ["−10.0", "+3.0", "0.0"]
    assert column(html, "Own mix") == ["90.0 %"] * 3
    assert column(html, "All classes") == ["60.0 %"] * 3
    assert "takes 67 % from itself, and learns from 2.1 clients in effect" in html
    assert "by −2.3 points" in html
    heads = re.findall('<th scope="row"[^>]*>(.*?)<br>', html)
    assert heads == ["North", "South", "client 2"], "one without a name has its number"


def test_the_three_strongest_teachers_come_first(of):
    results = federation_results(clients=5, rounds=1)
    row = [0.1, 0.3, 0.05, 0.35, 0.2]
    entry(results)["rounds"][0].update(members=[0, 1, 2, 3, 4], weights=[row] * 5)
    first, second, *_ = column(of(helped, results), "Learns from")
    assert first == "client 3 (35 %), client 1 (30 %), client 4 (20 %)"
    assert second == "client 3 (35 %), client 4 (20 %), client 0 (10 %)"


def test_a_client_that_was_not_fused_has_no_teachers(of):
    results = trio()
    entry(results)["rounds"][1].update(members=[0, 2], weights=[[0.5, 0.5], [0.5, 0.5]])
    html = of(helped, results)
    assert column(html, "Learns from")[1] == "–"
    assert column(html, "In effect")[1] == "–"


def test_traffic_is_added_up(of):
    results = trio()
    rounds = entry(results)["rounds"]
    sizes = {"0": (100, 0), "1": (200, 0), "2": (None, None)}, {"0": (100, 3000), "1": (200, 5000), "2": (60, 7000)}
    for record, told in zip(rounds, sizes, strict=True):
        for key, (up, down) in told.items():
            record["clients"][key].update(bytes_up=up, bytes_down=down)
    html = of(traffic, results)
    assert column(html, "Sent a round") == ["60 B to 200 B", "100 B", "200 B", "60 B"]
    assert column(html, "Received a round") == ["0 B to 7.00 kB", "0 B to 3.00 kB", "0 B to 5.00 kB", "7.00 kB"]
    assert column(html, "Sent in all") == ["660 B", "200 B", "400 B", "60 B"]
    assert column(html, "Received in all") == ["15.0 kB", "3.00 kB", "5.00 kB", "7.00 kB"]
    sent, received = alt_texts(html)
    assert sent == "Bytes sent by a client in each round: KnFu 120 B in the end."
    assert received == "Bytes received by a client in each round: KnFu 5.00 kB in the end."
    assert [text for text in written(drawings(html)[1]) if text.endswith("B")] == ["0 B", "1.5 kB", "3 kB", "4.5 kB"]


def test_weights_beside_answers_are_drawn_by_powers_of_ten(of):
    sent, _ = drawings(of(traffic, strategies=("knfu", "fedavg", "local"), clients=3))
    assert {"10 kB", "100 kB", "1 MB", "10 MB"} <= set(written(sent))
    assert [num_lines(sent, series) for series in range(3)] == [1, 1, 0], "nothing that is sent has no power"


def test_without_known_bytes_there_is_no_traffic(of):
    results = trio()
    for record in entry(results)["rounds"]:
        for done in record["clients"].values():
            done.update(bytes_up=None, bytes_down=None)
    assert of(traffic, results) is None


def test_what_went_wrong_is_told_by_round(of):
    results = trio()
    first, second = entry(results)["rounds"]
    first.update(notes=[])
    second.update(notes=["no quorum", "guarded"])
    for record in (first, second):
        for done in record["clients"].values():
            done["rejected"] = False
    first["clients"]["1"] = {"status": "absent"}
    second["clients"]["0"] = {"status": "refused", "reason": "array soft of shape (3, 2)"}
    second["clients"]["2"]["rejected"] = True
    second["notes"].append("client 0 (client 0) refused: array soft of shape (3, 2)")  # told already
    first["clients"]["2"] = {"status": "failed", "reason": "no memory"}
    first["clients"]["0"] = {"status": None}
    html = of(troubles, results)
    assert column(html, "What happened") == [
        "absent: client 1<br>failed: client 2 (no memory)",
        "refused: client 0 (array soft of shape (3, 2))<br>rejected: client 2<br>no quorum<br>guarded",
    ]
    assert re.findall('<th scope="row"[^>]*>(.*?)</th>', html) == ["round 1", "round 2"]
    assert "In all: 1 absent, 1 failed, 1 refused, 1 rejected, 2 noted." in html


def test_several_runs_tell_their_troubles_apart(of):
    html = of(troubles, strategies=("knfu", "local"), seeds=(0, 7), clients=3)
    titles = re.findall("<summary>(.*?)</summary>", html)
    assert [title.split(":")[0] for title in titles] == [
        *("KnFu, seed 0", "KnFu, seed 7"),
        *("Local, seed 0", "Local, seed 7"),
    ]
    assert titles[0].endswith("1 absent, 1 refused, 3 rejected, 1 noted")
    assert "absent: <bdi>client 1</bdi>" in html, "whatever the direction of writing"


def test_many_absent_clients_are_counted(of):
    results = federation_results(clients=20, rounds=1)
    for done in entry(results)["rounds"][0]["clients"].values():
        done.update(status="absent")
    entry(results)["rounds"][0].update(weights=None, members=[], notes=[])
    (told,) = column(of(troubles, results), "What happened")
    assert told.startswith("absent: client 0, client 1,")
    assert told.endswith("client 7 and 12 more")


def test_a_run_without_trouble_says_so(of):
    results = trio()
    for record in entry(results)["rounds"]:
        record["notes"] = []
        for done in record["clients"].values():
            done["rejected"] = False
    assert "Nothing: every client answered in every round" in of(troubles, results)


def test_what_auto_chose_is_marked_among_what_it_tried(of):
    assert of(automatic, clients=3) is None
    results = federation_results(clients=3, strategies=("auto",))
    tried = [
        {"beta": 1, "temperature": 3, "threshold": 0, "gain": -0.01, "reports": 3},
        {"beta": 10, "temperature": 3, "threshold": 0.5, "gain": 0.025, "reports": 4},
        {"beta": 10, "temperature": 1, "threshold": 0, "gain": None, "reports": 0},
    ]
    entry(results)["chosen"] = {"beta": 10, "temperature": 3, "threshold": 0.5, "tried": tried}
    html = of(automatic, results)
    assert "Chosen: beta 10, temperature 3, threshold 0.5." in html
    assert column(html, "") == ["", "chosen", ""]
    assert column(html, "Gain (points)") == ["−1.0", "+2.5", "–"]
    assert column(html, "Reports") == ["3", "4", "0"]


def test_long_tables_are_folded_away(of):
    assert "<summary>All 100 clients</summary>" in of(helped, clients=100, rounds=2)
    assert "<summary>" not in of(helped, clients=20, rounds=2)


def test_text_from_outside_stays_text(of):
    results = federation_results(clients=3, classes=2, names=["<img src=x>", "\ud800\x00\u202e", EVIL + "a" * 300])
    one = entry(results)
    one.update(strategy=f"knfu{EVIL}", class_names=[EVIL, "b"], partition={"kind": EVIL, EVIL: EVIL})
    one["transfer"] = {"source": EVIL, "num_samples": 3}
    for client in one["clients"]:
        client["model"] = EVIL
    for record in one["rounds"]:
        record["notes"] = [EVIL]
        record["clients"]["0"].update(status="refused", reason=EVIL)
    for panel in PANELS:
        html = of(panel, results)
        if html is None:
            assert panel is automatic
            continue
        page = Page(html)
        assert not {"script", "img", "iframe"} & {tag for tag, _ in page.elements}
        assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
        html.encode("utf-8")
        assert "\x00" not in html
        assert "\u202e" not in html
        assert "a" * 33 not in html
    assert "client 1" in of(helped, results), "a name of nothing that can be printed"


def test_the_page_has_them_in_order_and_every_id_once(tmp_path):
    results = federation_results(clients=10, strategies=("auto", "knfu", "local"), seeds=(0, 1))
    page = Page(write_report(write_federation(tmp_path, results)).read_text(encoding="utf-8"))
    expected = ["Strategies", "What auto chose", "Accuracy by round", "Labels of the clients", "Weights of the fusion"]
    expected += ["Who helped whom", "Traffic", "What went wrong"]
    assert [title for title in page.text_of("h2") if title in expected] == expected
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    assert not page.attributes("src"), "nothing is loaded"
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in page.attributes("xlink:href"))


def test_the_same_folder_always_gives_the_same_bytes(tmp_path):
    run = write_federation(tmp_path, federation_results(clients=10))
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def damaged(change):
    results = trio()
    change(entry(results))
    return results


def rounds(one):
    return one["rounds"][0]


DAMAGES = {
    "a seed in words": (lambda one: one.update(seed="0"), "federation.0.seed = '0'"),
    "a seed that is a switch": (lambda one: one.update(seed=True), "federation.0.seed = True"),
    "an accuracy in percent": (lambda one: rounds(one).update(alma=91.0), "alma = 91.0"),
    "an accuracy in words": (lambda one: rounds(one).update(alma="0.9"), "alma = '0.9'"),
    "an accuracy of no number": (lambda one: rounds(one).update(alma=float("nan")), "alma = nan"),
    "no clients": (lambda one: one.pop("clients"), "no value for 'results.federation.0.clients'"),
    "clients by name": (lambda one: rounds(one).update(clients={"x": {"status": "ok"}}), "valid integer"),
    "an unknown status": (lambda one: rounds(one)["clients"]["0"].update(status="gone"), "'gone'"),
    "bytes that are no whole number": (lambda one: rounds(one)["clients"]["0"].update(bytes_up=1.5), "1.5"),
    "fewer bytes than none": (lambda one: rounds(one)["clients"]["0"].update(bytes_up=-1), "-1"),
    "rejected by number": (lambda one: rounds(one)["clients"]["0"].update(rejected=1), "valid boolean"),
    "weights of another size": (lambda one: rounds(one).update(weights=[[1.0]]), "1 rows of [1] for 3 members"),
    "weights that add up to less": (lambda one: rounds(one).update(weights=[[0.3] * 3] * 3), "row of sum 0.9"),
    "a member twice": (lambda one: rounds(one).update(members=[0, 0, 1]), "named twice"),
    "a client that nobody knows": (lambda one: rounds(one).update(members=[0, 1, 9]), "client 9 in round 1"),
    "two clients of one id": (lambda one: one["clients"][1].update(id=0), "clients of the same id"),
    "a histogram too short": (lambda one: one["clients"][0].update(histogram=[1, 2]), "histograms of [2, 3] classes"),
    "a name that is a number": (lambda one: one["clients"][0].update(name=7), "name = 7"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_and_not_thrown(tmp_path, name):
    change, told = DAMAGES[name]
    with pytest.raises(InputError) as error:
        write_report(write_federation(tmp_path, damaged(change)))
    assert told in str(error.value)


def test_a_federation_that_is_no_list_is_told(tmp_path):
    with pytest.raises(InputError, match="federation"):
        write_report(write_federation(tmp_path, federation_results(federation={"knfu": 1})))


def test_what_is_missing_or_no_json_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_federation(tmp_path)
    for text, told in (("{", "valid JSON"), ("[]", "holds list")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(InputError, match=told):
            read_federation(tmp_path)


def test_unknown_keys_are_passed_over_and_figures_may_be_missing():
    bare = {"strategy": "knfu", "seed": 0, "clients": [{"id": 0}], "rounds": [{"round": 1}], "later": 1}
    bare["rounds"][0]["clients"] = {"0": {"status": "ok", "mood": "fine"}}
    (one,) = as_federation({"kind": "federate", "federation": [bare], "more": 2})
    assert one.rounds[0].clients[0].own_accuracy is None
    assert one.name_of(0) == "client 0"


def test_a_bare_record_is_a_page(tmp_path):
    bare = {"strategy": "knfu", "seed": 0, "clients": [{"id": 0}], "rounds": [{"round": 1}]}
    page = Page(write_report(write_federation(tmp_path, federation_results(federation=[bare]))).read_text())
    assert "Strategies" in page.text_of("h2")
    assert "Weights of the fusion" not in page.text_of("h2")


def test_a_folder_that_was_written_again_is_read_again(tmp_path):
    results = trio()
    first = read_federation(write_federation(tmp_path, results))
    changed = copy.deepcopy(results)
    entry(changed)["clients"][0]["name"] = "a longer name than before"
    second = read_federation(write_federation(tmp_path, changed))
    assert first[0].name_of(0) == "client 0"
    assert second[0].name_of(0) == "a longer name than before"
    assert json.loads((tmp_path / "results.json").read_text())["kind"] == "federate"
