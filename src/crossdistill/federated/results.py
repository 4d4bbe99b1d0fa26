"""What a federation came to, as ``results.json`` holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from crossdistill.analysis.compare import summarise, verdict
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.strategy import STRATEGIES
from crossdistill.runs.results import Results, Row, make_results

KIND = "federate"
ROLE = "federated"

BASELINES = ("self", "local")
"""With whom a strategy is compared in words, if they ran as well: the control at the same cost, and no exchange."""


def federation_of(settings: FederateSettings, log: RoundLog, *, folder: str) -> dict[str, Any]:
    """The record of one run, for the report."""
    last = log.rounds[-1]
    offered = [one for each in log.rounds for one in each["clients"].values() if one.get("val_after") is not None]
    figures = {name: last[name] for name in ("alma", "alma_balanced", "worst", "sd")}
    partition = settings.partition
    shown = {"kind": partition.kind, "alpha": partition.alpha if partition.kind == "dirichlet" else None}
    return {
        "strategy": settings.strategy,
        "seed": settings.seed,
        "folder": folder,
        "partition": shown,
        "class_names": list(log.class_names),
        "transfer": {"source": settings.transfer.source or settings.data.source, "num_samples": log.num_transfer},
        "clients": [log.clients[client] for client in sorted(log.clients)],
        "rounds": log.rounds,
        "final": {**figures, "offered": len(offered), "rejected": sum(bool(one.get("rejected")) for one in offered)},
        "chosen": log.chosen,
    }


def results_of(records: Sequence[Mapping[str, Any]], settings: FederateSettings, *, seconds: float) -> Results:
    """Everything that ``results.json`` holds, from the records of one run or several."""
    rows = _rows(records, settings)
    first = records[0]
    num_train = sum(client["num_train"] + client["num_val"] for client in first["clients"])
    results = make_results(
        KIND,
        rows,
        data={
            "source": settings.data.source,
            "num_classes": len(first["class_names"]),
            "num_train": num_train,
            "num_labelled": num_train,
            "evaluation_split": "test, by each client's own distribution",
            "num_evaluation": _num_test(first),
        },
        identity={"data_sha256": _identity(first), "teacher_sha256": None},
        settings=settings.model_dump(mode="json"),
        seconds=seconds,
        warnings=_warnings(records, settings.clients),
    )
    return {**results, "headline": _headline(rows, settings), "federation": list(records)}


def _num_test(record: Mapping[str, Any]) -> int:
    """Images that clients are tested on: each its own ones, or all the same ones."""
    counts = [client["num_test"] for client in record["clients"]]
    return sum(counts) if any(client["own_test"] for client in record["clients"]) else max(counts)


def _rows(records: Sequence[Mapping[str, Any]], settings: FederateSettings) -> list[Row]:
    """A row a strategy: ALMA on the clients' own distributions."""
    models = ", ".join(dict.fromkeys(client["model"].rpartition("/")[2] for client in records[0]["clients"]))
    rows = []
    for strategy in dict.fromkeys(record["strategy"] for record in records):
        own = [record for record in records if record["strategy"] == strategy and record["final"]["alma"] is not None]
        if not own:
            continue
        summary = summarise([record["final"]["alma"] for record in own])
        rows.append(
            {
                "role": ROLE,
                "name": models,
                "method": STRATEGIES.get(strategy).facts["title"],
                "runs": [{"seed": one["seed"], "top1": one["final"]["alma"], "folder": one["folder"]} for one in own],
                "top1_mean": summary.mean,
                "top1_sd": summary.sd,
                **dict.fromkeys(("num_labels", "num_parameters", "gmacs", "latency_ms")),
            }
        )
    return rows


def _headline(rows: Sequence[Row], settings: FederateSettings) -> str | None:
    """The first strategy against those it must beat."""
    by_title = {row["method"]: {run["seed"]: run["top1"] for run in row["runs"]} for row in rows}
    titles = {name: STRATEGIES.get(name).facts["title"] for name in (settings.strategy, *BASELINES)}
    first = titles[settings.strategy]
    sentences = [
        verdict(by_title[titles[name]], by_title[first], subject=f"{first} against {titles[name]}")
        for name in BASELINES
        if titles[name] in by_title and first in by_title and titles[name] != first
    ]
    return " ".join(sentences) or None


def _warnings(records: Sequence[Mapping[str, Any]], num_clients: int) -> list[str]:
    """What a reader must know beside the figures."""
    found = []
    for record in records:
        title, final = STRATEGIES.get(record["strategy"]).facts["title"], record["final"]
        last = record["rounds"][-1]["clients"].values()
        tested = sum(one.get("own_accuracy") is not None for one in last)
        if tested < num_clients:
            found.append(f"{title}, seed {record['seed']}: the final figures are of {tested} of {num_clients} clients")
        missing: dict[str, int] = {}
        for each in record["rounds"]:
            for one in each["clients"].values():
                if one.get("status") not in ("ok", None):
                    missing[one["status"]] = missing.get(one["status"], 0) + 1
        if missing:
            shown = ", ".join(f"{count} {status}" for status, count in missing.items())
            found.append(f"{title}, seed {record['seed']}: answers missing: {shown} (see the rounds)")
        rejected, offered = final["rejected"], final["offered"]
        if rejected > offered / 2:
            found.append(
                f"{title}, seed {record['seed']}: in {rejected} of {offered} cases a client went back, since what was "
                "fused made it worse on labels of its own"
            )
        spent = [one["epsilon"] for each in record["rounds"] for one in each["clients"].values() if one.get("epsilon")]
        if spent:
            found.append(
                f"{title}, seed {record['seed']}: local training with differential privacy of each training image, "
                f"epsilon {max(spent):.2f} at most over all rounds; figures and the number of images are outside of it"
            )
        empty = [client["name"] for client in record["clients"] if client["num_train"] < 2]
        if empty:
            found.append(f"clients without images to train on: {', '.join(empty[:5])}{' …' if len(empty) > 5 else ''}")
    return list(dict.fromkeys(found))


def _identity(record: Mapping[str, Any]) -> str:
    facts = [[client[key] for key in ("id", "name", "num_train", "num_val")] for client in record["clients"]]
    return hashlib.sha256(repr([record["class_names"], record["transfer"], facts]).encode()).hexdigest()
