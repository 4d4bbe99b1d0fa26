"""What it costs in accuracy to keep less of a teacher's answers: all logits, the k largest, or those to fewer epochs.

The setting is the pilot's: a small student, a trained teacher of another family, the 20 coarse classes of CIFAR-100 at
32 px, and for every way of teaching the same first weights by seed, the same order of images and the same number of
steps. The teacher is live, or a store of all its logits in fp16, or of the k largest of each image with the mass of the
others; or it has answered only the first epochs, whose images, changes included, are then shown again and again. One
fixed ``data.seed`` for all: a store holds the answers to the images of one. Each row is one method and one way; the
differences to the live teacher are paired by seed.

    for teacher in cnn vit; do
      crossdistill recipes run pilot/teacher-$teacher --out runs/pilot/teacher-$teacher
    done
    python benchmarks/top_k.py --out runs/pilot

The classes are the coarse ones since the students learn next to nothing of the hundred fine ones in so few steps: what
is lost by keeping less of an answer cannot be seen where the answer itself does not help.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pilot import PAIRS, STUDENTS, TEACHERS, labelled
from record import record

from crossdistill.analysis import difference
from crossdistill.analysis.compare import points
from crossdistill.report.table import markdown
from crossdistill.runs import Keep, execute, load_store_settings, make_plan, recipe_path, store_teacher
from crossdistill.store import Store

METHODS = ("kd", "ofa")
NUM_IMAGES, STEPS, DATA_SEED = 5000, 400, 0
LIVE = "live"


class Way(NamedTuple):
    """How the teacher's answers come to the student; ``keep`` of the live teacher is ``None``."""

    name: str
    keep: Keep | None
    cycle_epochs: int | None = None


WAYS = (
    Way(LIVE, None),
    Way("all logits", Keep()),
    Way("top 10", Keep(10)),
    Way("top 5", Keep(5)),
    Way("top 1", Keep(1)),
    Way("all logits, of 2 epochs again and again", Keep(), 2),
    Way("all logits, of 1 epoch again and again", Keep(), 1),
)


class Setting:
    """One pair: its settings but for the way, and where its stores and runs lie."""

    def __init__(self, pair: str, options: argparse.Namespace) -> None:
        self.pair, self.options = pair, options
        self.teacher, self.student = PAIRS[pair]
        recipe = yaml.safe_load(recipe_path("pilot/none").read_text(encoding="utf-8"))
        self.train = {**recipe["train"], "steps": options.steps}
        self.data = {**recipe["data"], "limit_train": options.images, "seed": DATA_SEED, "workers": 0}
        self.folder = options.out / f"store-{pair}"
        self.teacher_run = options.out / f"teacher-{self.teacher}"

    @property
    def num_epochs(self) -> int:
        """Epochs that a run of so many steps shows, the last perhaps in part."""
        return -(-self.options.steps // (self.options.images // self.train["batch_size"]))

    @cache  # noqa: B019  # one a pair, for the whole run
    def store(self, keep: Keep) -> Path:
        """The store of these answers, made or gone on with."""
        path: Path = self.folder / ("store-all" if keep.top_k is None else f"store-top-{keep.top_k}")
        settings = load_store_settings(
            {
                "teachers": [{"name": str(self.teacher_run)}],
                "data": self.data,
                "train": {"batch_size": self.train["batch_size"]},
            }
        )
        store_teacher(settings, path, epochs=self.num_epochs, keep=keep)
        return path

    def run(self, method: str, way: Way | None) -> dict[str, Any]:
        """The results over all seeds; finished runs are read. Without a way the student is trained alone."""
        teachers: list[dict[str, str]] = []
        if way is not None:
            teachers = [{"name": str(self.teacher_run if way.keep is None else self.store(way.keep))}]
        again = {} if way is None or way.cycle_epochs is None else {"cycle_epochs": way.cycle_epochs}
        tree = {
            "student": STUDENTS[self.student],
            "teachers": teachers,
            "method": {"name": method},
            "data": {**self.data, **again},
            "train": self.train,
        }
        label = method if way is None else f"{method}, {way.name}"
        print(f"{self.pair}: {label}", flush=True)
        out = self.folder / label.replace(", ", "-").replace(" ", "_")
        seeds = tuple(int(seed) for seed in self.options.seeds.split(","))
        results = execute(make_plan(tree, seeds=seeds), out, resume=out.exists(), quiet=True)
        record(
            labelled(results, label),
            self.options.results,
            recipe=f"store/{self.pair}",
            command=_command(self.options),
            teacher=TEACHERS[self.teacher],
        )
        return dict(results)

    def num_bytes(self, way: Way) -> str:
        """Of one stored answer."""
        return "" if way.keep is None else str(Store.open(self.store(way.keep)).manifest.bytes_per_sample())


def by_seed(results: dict[str, Any]) -> dict[int, float]:
    """Accuracy of the student by seed."""
    (row,) = (one for one in results["rows"] if one["role"] != "teacher")
    return {run["seed"]: run["top1"] for run in row["runs"]}


def compare(setting: Setting, methods: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The lines of the table, with what each way differs from the live teacher."""
    alone = by_seed(setting.run("none", None))
    yield (setting.pair, "none", "", "", f"{100 * _mean(alone):.2f}", "")
    for method in methods:
        live: dict[int, float] = {}
        for way in WAYS:
            found = by_seed(setting.run(method, way))
            live = live or found
            mean = f"{100 * _mean(found):.2f}"
            yield (setting.pair, method, way.name, setting.num_bytes(way), mean, _difference(live, found))


def _mean(found: dict[int, float]) -> float:
    return sum(found.values()) / len(found)


def _difference(live: dict[int, float], found: dict[int, float]) -> str:
    measured = difference(live, found)
    if measured is None or live is found:
        return ""
    around = "" if measured.interval is None else f" ({' to '.join(points(end) for end in measured.interval)})"
    return points(measured.mean) + around


def _command(options: argparse.Namespace) -> str:
    """The command as it can be repeated, with what is not the default."""
    kept = ["python", "benchmarks/top_k.py", "--out", "runs/pilot"]
    for name, default in (("pairs", "vit-cnn"), ("seeds", "0,1,2"), ("steps", STEPS), ("images", NUM_IMAGES)):
        given = getattr(options, name)
        kept += [] if given == default else [f"--{name}", str(given)]
    return shlex.join(kept)


def main() -> None:
    """Run what is asked for, write the rows and print the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, with the teachers")
    parser.add_argument("--results", type=Path, default=Path("results/checks/store.csv"))
    parser.add_argument("--pairs", default="vit-cnn", help=f"of {', '.join(PAIRS)}")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--images", type=int, default=NUM_IMAGES, help="training images")
    options = parser.parse_args()
    columns = ("Pair", "Method", "Answers", "Bytes", "Top-1", "Minus live, points (95 % interval)")
    methods = options.methods.split(",")
    lines = [line for pair in options.pairs.split(",") for line in compare(Setting(pair, options), methods)]
    print(markdown(columns, tuple(lines), num_text_columns=3))


if __name__ == "__main__":
    main()
