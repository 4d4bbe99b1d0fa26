"""What a watcher sees, and the clock behind it."""

import io
import re

import pytest
from rich.console import Console

from crossdistill.engine import fit
from crossdistill.engine.progress import Bar, Lines, Quiet, Stopwatch, reporter
from samples.training import Alone, SmallNet, TensorLoader, settings


def train(watcher, **changes):
    loader = TensorLoader()
    keywords = {"settings": settings(epochs=2, log_every=2, **changes), "device": "cpu", "reporter": watcher}
    return fit(SmallNet(), Alone(), None, loader, loader.evaluation(), **keywords)


def test_lines_say_where_the_run_is_once_an_epoch():
    stream = io.StringIO()
    result = train(Lines(stream, min_seconds=0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("epoch 1/2 | step 4/8 | cross_entropy ")
    assert "images/s" in lines[0]
    assert "waiting for data" in lines[0]
    assert lines[2].endswith("| 0 s left")
    assert lines[3] == f"epoch 2 | top-1 {result.metrics['top1']:.1%}, loss {result.metrics['loss']:.3g}"


def test_short_epochs_are_passed_over_but_not_the_last():
    stream = io.StringIO()
    train(Lines(stream, min_seconds=3600))
    lines = stream.getvalue().splitlines()
    assert [line[:9] for line in lines] == ["epoch 2/2", "epoch 2 |"]
    stream = io.StringIO()
    watcher = Lines(stream, min_seconds=3600)
    watcher.begin(step=0, total_steps=30, steps_per_epoch=1)
    for step in range(1, 31):
        line = {"epoch": step, "step": step, "lr": 0.1, "losses": {}, "images_per_second": 1.0, "data_wait_share": 0}
        watcher.train(line)
        watcher.evaluated({"epoch": step, "step": step, "top1": 0.5, "loss": 1.0})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["30/30", "30"]


def test_a_long_epoch_is_not_silent():
    stream = io.StringIO()
    train(Lines(stream, min_seconds=3600, max_seconds=0))
    assert "epoch 1/2 | step 2/8" in stream.getvalue()


def test_the_bar_shows_losses_speed_and_accuracy():
    stream = io.StringIO()
    watcher = Bar(Console(file=stream, force_terminal=True, width=220))
    watcher.message("teacher [x]: 90 %")
    train(watcher)
    shown = stream.getvalue()
    for words in ("teacher [x]: 90 %", "8/8", "cross_entropy", "images/s", "waiting for data", "top-1"):
        assert words in shown, words


def test_the_bar_stays_whole_on_a_narrow_terminal():
    stream = io.StringIO()
    watcher = Bar(Console(file=stream, force_terminal=True, width=80))
    watcher.begin(step=0, total_steps=2000, steps_per_epoch=10)
    losses = {f"branch{index}": index + 0.5 for index in range(12)}
    watcher.train({"losses": losses, "lr": 0.1, "images_per_second": 812.4, "data_wait_share": 0.25})
    watcher.evaluated({"epoch": 3, "top1": 0.5, "loss": 1.0})
    watcher.stepped(1000)
    watcher.end()
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    last = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()][-4:]
    assert re.fullmatch(r"step 1000/2000 ━+ ?\S*━* 0:00:0\d passed, \S+ left", last[0])
    assert last[1] == "lr 0.1, 812 images/s, 25% waiting for data"
    assert last[2].startswith("loss 72 (branch0 0.5, branch1 1.5, ")
    assert last[2].endswith("…")
    assert last[3] == "epoch 3: top-1 50.0%, loss 1"
    assert max(map(len, last)) <= 80


@pytest.mark.parametrize(("mode", "kind"), [("quiet", Quiet), ("lines", Lines), ("bar", Bar), ("auto", Lines)])
def test_reporters_by_name(mode, kind, monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(reporter(mode)) is kind


def test_quiet_prints_nothing(capfd):
    train(Quiet())
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def tick(monkeypatch):
    """A clock that moves only when told to."""
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def move(seconds):
        now[0] += seconds

    return move


def test_the_stopwatch_tells_waiting_from_working(tick):
    def slow():
        for item in range(4):
            tick(0.75)
            yield item

    clock = Stopwatch()
    for _ in clock.steps(slow()):
        tick(0.25)
        clock.images += 10
    assert clock.seconds == 4.0
    assert clock.rates() == {"images_per_second": 10.0, "data_wait_share": 0.75}


def test_laps_count_from_the_last_one_and_a_resumed_clock_goes_on(tick):
    clock = Stopwatch(seconds=100.0, waited=50.0, images=1000)
    laps = []
    for seconds in clock.steps(iter([0.5, 2.0])):
        tick(seconds)
        clock.images += 5
        laps.append(clock.lap())
    assert laps == [{"images_per_second": rate, "data_wait_share": 0.0} for rate in (10.0, 2.5)]
    assert (clock.seconds, clock.waited, clock.images) == (102.5, 50.0, 1010)
