"""KnFu beside its controls and baselines: heterogeneity by local size, attacks, transport and noise, on small networks.

Ten clients with a small CNN, transformer or MLP each, 500 transfer images, Dirichlet alphas by local sizes. All
strategies of a seed have the same parts, first weights and batches. Apps and messages are those of every federation;
clients take their turns in one process (a test shows that Flower's simulation gives the same numbers).

    python benchmarks/federated.py --data digits --sizes 100 --out runs/federated
    python benchmarks/federated.py --data mnist --sizes 100,500,2000 --alphas 0.1,0.5,5,100 --out runs/federated
    python benchmarks/federated.py --data digits --sizes 100 --alphas 0.5,5 --out runs/federated \
        --variants "knfu attacked,knfu guard attacked,fedmd attacked" --results results/federated/attacks.csv
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import origin
from timing import Row, write

from crossdistill.analysis.environment import environment
from crossdistill.federated.centralised import pool_and_train
from crossdistill.federated.client_app import build_app
from crossdistill.federated.direct import DirectGrid
from crossdistill.federated.environment import quiet
from crossdistill.federated.messages import KNOWLEDGE, record_of
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import FederateSettings, load_settings
from crossdistill.report.table import markdown

CLIENTS, ROUNDS = 10, 5
ATTACKERS = 2
"""A fifth of the clients, the first ones; accuracy of the others is a column of its own."""

EPOCHS = {100: 20, 500: 5, 2000: 2}
"""Local epochs a round, by local size: more images are seen less often."""

DATA: dict[str, dict[str, Any]] = {
    "digits": {"source": "digits"},
    "mnist": {"source": "mnist"},
    "cifar100": {"source": "cifar100", "label_column": "coarse_label"},
}
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"name": "cnn", "args": {"channels": [8, 16, 32, 64], "stem_width": 8}},
    "transformer": {"name": "transformer", "args": {"depth": 2}},
    "mlp": {"name": "mlp", "args": {"num_blocks": 2}},
}
STRATEGIES = ("local", "self", "fedmd", "feddf", "selective_fd", "knfu", "auto", "centralised")
NOISY = (
    "train.optimizer=momentum",
    "train.momentum=0",
    "train.lr=2",
    "train.batch_size=64",
    "privacy.max_grad_norm=0.3",
)
"""Noise wants large steps of few: Adam at a small batch learns next to nothing."""

VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    **{name: (name, ()) for name in (*STRATEGIES, "epd_true")},
    "fedavg, cnn": ("fedavg", ("families=cnn",)),
    "knfu, cnn": ("knfu", ("families=cnn",)),
    "local, cnn": ("local", ("families=cnn",)),
    "knfu temperature 1": ("knfu", ("fusion.temperature=1",)),
    "knfu without net": ("knfu", ("safety.reject=false",)),
    "fedmd without net": ("fedmd", ("safety.reject=false",)),
    "self without net": ("self", ("safety.reject=false",)),
    "knfu guard": ("knfu", ("fusion.guard=true",)),
    "knfu fp32": ("knfu", ("transport.kind=fp32",)),
    "knfu top 3": ("knfu", ("transport.kind=top_k", "transport.top_k=3")),
    "knfu top 1": ("knfu", ("transport.kind=top_k", "transport.top_k=1")),
    "knfu attacked": ("knfu", ()),
    "knfu guard attacked": ("knfu", ("fusion.guard=true",)),
    "knfu without net attacked": ("knfu", ("safety.reject=false",)),
    "knfu guard without net attacked": ("knfu", ("fusion.guard=true", "safety.reject=false")),
    "fedmd without net attacked": ("fedmd", ("safety.reject=false",)),
    **{
        f"{name}, no cnn{f', epsilon {epsilon}' if epsilon else ''}": (
            name,
            ("families=transformer mlp", *((f"privacy.epsilon={epsilon}", *NOISY) if epsilon else ())),
        )
        for name in ("knfu", "local")
        for epsilon in (None, 8, 2)
    },
}
"""Name -> strategy and what is set otherwise; "attacked": a fifth of the clients shuffles its answers."""

COLUMNS = (
    *("data", "alpha", "samples", "variant", "seeds", "alma_mean", "alma_sd", "alma_by_seed", "balanced_mean"),
    *("worst_mean", "between_clients_sd", "honest_mean", "went_back", "self_weight", "neighbours", "bytes_up"),
    *("bytes_down", "epsilon", "seconds", "device", "torch", "commit", "command", "date"),
)
SAME = ("data", "alpha", "samples", "variant", "device")


def settings_of(variant: str, alpha: float, samples: int, seed: int, options: argparse.Namespace) -> FederateSettings:
    """One cell of the grid."""
    strategy, overrides = VARIANTS[variant]
    families = next((one.split("=")[1] for one in overrides if one.startswith("families=")), "cnn transformer mlp")
    overrides = tuple(one for one in overrides if not one.startswith("families="))
    loop = {"lr": 3e-3, "epochs": EPOCHS.get(samples, 5)}
    tree = {
        "data": DATA[options.data],
        "clients": CLIENTS,
        "rounds": ROUNDS,
        "strategy": strategy,
        "models": [MODELS[one] for one in families.split()],
        "partition": {"alpha": alpha, "samples": samples, "test_limit": 2000},
        "transfer": {"limit": 500},
        "train": loop,
        "tune": {"lr": 3e-3, "epochs": 3, "batch_size": 64},
        "eval_every": ROUNDS,
        "seed": seed,
        "gather": 0.0,
    }
    return load_settings(tree, overrides)


def run(settings: FederateSettings, *, attacked: bool) -> dict[str, Any]:
    """One run in a folder that is deleted again; its record."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        log = RoundLog(Path(name))
        if settings.strategy == "centralised":
            pool_and_train(settings, log, print)
        else:
            app = build_app({"folder": f"{name}/clients", "simulated": True})
            grid = DirectGrid(app, CLIENTS)
            if attacked:
                grid.apps = {node: shuffling(app) if node <= ATTACKERS else app for node in grid.apps}
            Federation(settings, log, print).run(grid)
    return {"rounds": log.rounds, "chosen": log.chosen, "seconds": time.perf_counter() - start}


def shuffling(app: Any) -> Callable[[Any, Any], Any]:
    """A client that sends its answers for the wrong images, and is otherwise what it says."""

    def answer(message: Any, context: Any) -> Any:
        reply = app(message, context)
        if KNOWLEDGE in reply.content.array_records:
            arrays = {name: array.numpy() for name, array in reply.content[KNOWLEDGE].items()}
            order = np.random.default_rng(0).permutation(len(next(iter(arrays.values()))))
            reply.content[KNOWLEDGE] = record_of({name: array[order] for name, array in arrays.items()})
        return reply

    return answer


def figures_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of one run: those of its last round, and what was sent in all."""
    last, clients = record["rounds"][-1], record["rounds"][-1]["clients"]
    every = [one for each in record["rounds"] for one in each["clients"].values()]
    offered = [one for one in every if one.get("val_after") is not None]
    honest = [one["own_accuracy"] for number, one in clients.items() if int(number) >= ATTACKERS]
    weights = None if last["weights"] is None else np.array(last["weights"])
    epsilons = [one["epsilon"] for one in every if one.get("epsilon")]
    return {
        "alma": last["alma"],
        "balanced": last["alma_balanced"],
        "worst": last["worst"],
        "between_clients": last["sd"],
        "honest": float(np.mean(honest)),
        "went_back": len([one for one in offered if one["rejected"]]) / len(offered) if offered else None,
        "self_weight": None if weights is None else float(np.diag(weights).mean()),
        "neighbours": None if weights is None else float((1 / (weights**2).sum(axis=1)).mean()),
        "bytes_up": float(np.mean([one["bytes_up"] or 0 for one in record["rounds"][0]["clients"].values()])),
        "bytes_down": float(np.mean([one.get("bytes_down") or 0 for one in clients.values()])),
        "epsilon": max(epsilons) if epsilons else None,
    }


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """One row a cell that has been run with all seeds."""
    for alpha, samples, variant in cells(options):
        paths = [path_of(variant, alpha, samples, seed, options) for seed in options.seeds]
        if all(path.exists() for path in paths):
            found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
            yield row_of(variant, alpha, samples, found, options)


def row_of(variant: str, alpha: float, samples: int, found: list[dict[str, Any]], options: argparse.Namespace) -> Row:
    """A cell's row: means over seeds."""
    figures = [figures_of(one) for one in found]

    def mean(name: str, digits: int = 5) -> float | None:
        values = [one[name] for one in figures if one[name] is not None]
        return round(float(np.mean(values)), digits) if values else None

    alma = [float(one["alma"] or 0.0) for one in figures]
    return {
        "data": options.data,
        "alpha": alpha,
        "samples": samples,
        "variant": variant,
        "seeds": len(found),
        "alma_mean": mean("alma"),
        "alma_sd": round(float(np.std(alma, ddof=1)), 5) if len(alma) > 1 else None,
        "alma_by_seed": " ".join(f"{s}:{round(v, 5)}" for s, v in zip(options.seeds, alma, strict=True)),
        "balanced_mean": mean("balanced"),
        "worst_mean": mean("worst"),
        "between_clients_sd": mean("between_clients"),
        "honest_mean": mean("honest"),
        "went_back": mean("went_back", 3),
        "self_weight": mean("self_weight", 4),
        "neighbours": mean("neighbours", 2),
        "bytes_up": mean("bytes_up", 0),
        "bytes_down": mean("bytes_down", 0),
        "epsilon": mean("epsilon", 3),
        "seconds": round(float(np.mean([one["seconds"] for one in found])), 1),
        **origin(found[-1]["environment"], _command(variant, options)),
    }


def cells(options: argparse.Namespace) -> list[tuple[float, int, str]]:
    """What is asked for."""
    return [(alpha, size, one) for size in options.sizes for alpha in options.alphas for one in options.variants]


def path_of(variant: str, alpha: float, samples: int, seed: int, options: argparse.Namespace) -> Path:
    """Where the record of one run lies."""
    name = variant.replace(", ", "-").replace(" ", "-")
    folder: Path = options.out / options.data / f"alpha-{alpha:g}-samples-{samples}"
    return folder / name / f"seed-{seed}.json"


def _command(variant: str, options: argparse.Namespace) -> str:
    shown = {"alphas": options.alphas, "sizes": options.sizes, "seeds": options.seeds}
    lists = " ".join(f"--{name} {','.join(f'{one:g}' for one in values)}" for name, values in shown.items())
    return f"python benchmarks/federated.py --data {options.data} {lists} --variants '{variant}' --out runs/federated"


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(one.strip()) for one in text.split(",")]


def _variants(text: str) -> list[str]:
    """Names with commas of their own: ``local;knfu, cnn`` or, without any, ``local,knfu``."""
    names = [one.strip() for one in (text.split(";") if ";" in text else text.split(","))]
    return [text] if text in VARIANTS else names


def main() -> None:
    """Run what is asked for and not yet there, and write the rows that are complete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the records of single runs")
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--alphas", type=_list(float), default=[0.1, 0.5, 5.0, 100.0])
    parser.add_argument("--sizes", type=_list(int), default=[100])
    parser.add_argument("--seeds", type=_list(int), default=[0, 1, 2])
    parser.add_argument("--variants", type=_variants, default=list(STRATEGIES), help="with commas, or semicolons")
    parser.add_argument("--results", type=Path, default=None, help="default: results/federated/DATA.csv")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows-only", action="store_true", help="run nothing")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    for seed in options.seeds if not options.rows_only else ():
        for alpha, samples, variant in cells(options):
            path = path_of(variant, alpha, samples, seed, options)
            if path.exists():
                continue
            print(f"{options.data}, alpha {alpha:g}, {samples} images, {variant}, seed {seed}", flush=True)
            settings = settings_of(variant, alpha, samples, seed, options)
            record = run(settings, attacked="attacked" in variant) | {"environment": environment()}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record), encoding="utf-8")
            print({name: value for name, value in figures_of(record).items() if value is not None}, flush=True)
    found = list(rows(options))
    if found:
        write(options.results or Path(f"results/federated/{options.data}.csv"), found, COLUMNS, SAME)
        columns = ("alpha", "samples", "variant", "alma_mean", "alma_sd", "balanced_mean", "worst_mean", "went_back")
        print(
            markdown(columns, tuple(tuple(str(row.get(one)) for one in columns) for row in found), num_text_columns=3)
        )


if __name__ == "__main__":
    main()
