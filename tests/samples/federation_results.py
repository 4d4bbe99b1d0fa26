"""``results.json`` of a federated run, filled with plausible numbers: strategies, seeds, absences and all."""

import json

import numpy

from crossdistill.federated.fusion import divergences, fusion_weights, smooth
from samples.run_folder import sample_results

MODELS = ("timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/resmlp_tiny")
LEVELS = {"local": 0.86, "self": 0.87, "fedmd": 0.84, "knfu": 0.92, "auto": 0.93, "fedavg": 0.8}
BETAS = {"fedmd": 0.0, "self": 1e6, "knfu": 10.0, "auto": 10.0}
"""Strategies that weigh clients, and how."""


def federation_results(
    *, clients=10, strategies=("knfu",), seeds=(0,), rounds=6, classes=10, names=None, told=True, **changes
):
    """The mapping of ``results.json``; ``told`` is whether clients tell how many images of each class they have."""
    entries = [
        one_run(strategy, seed, clients=clients, rounds=rounds, classes=classes, names=names, told=told)
        for strategy in strategies
        for seed in seeds
    ]
    own = {
        "kind": "federate",
        "headline": None,
        "warnings": [],
        "rows": [_row(strategy, entries) for strategy in strategies],
        "settings": {"clients": clients, "rounds": rounds, "strategy": strategies[0]},
        "command": "crossdistill federate --data digits",
        "federation": entries,
    }
    return sample_results(**(own | changes))


def _row(strategy, entries):
    """A strategy in the table of all networks."""
    ends = {one["seed"]: one["final"]["alma"] for one in entries if one["strategy"] == strategy}
    return {
        "role": "federated",
        "name": ", ".join(model.removeprefix("timm/") for model in MODELS),
        "method": strategy,
        "runs": [{"seed": seed, "top1": top1, "folder": f"{strategy}/seed-{seed}"} for seed, top1 in ends.items()],
        "top1_mean": float(numpy.mean(list(ends.values()))),
    }


def one_run(strategy, seed, *, clients=10, rounds=6, classes=10, names=None, told=True):
    """An entry of the list ``federation``."""
    generator = numpy.random.default_rng([seed, clients])
    mixes = generator.dirichlet([0.5] * classes, clients)
    histograms = numpy.stack([generator.multinomial(110, mix) for mix in mixes])
    names = names or [f"client {index}" for index in range(clients)]
    facts = [
        {"id": index, "name": names[index], "model": MODELS[index % 3], "num_train": 88, "num_val": 22,
         "histogram": histograms[index].tolist() if told else None}
        for index in range(clients)
    ]  # fmt: skip
    levels = numpy.clip(generator.normal(LEVELS[strategy], 0.05, clients), 0.3, 0.98)
    records = [_round(number, rounds, strategy, levels, histograms / 110, generator) for number in range(1, rounds + 1)]
    last = records[-1]
    final = {key: last[key] for key in ("alma", "alma_balanced", "worst", "sd")}
    done = [one for record in records for one in record["clients"].values()]
    offered = sum(one["val_after"] is not None for one in done)
    return {
        "strategy": strategy,
        "seed": seed,
        "folder": f"{strategy}/seed-{seed}",
        "partition": {"kind": "dirichlet", "alpha": 0.5},
        "class_names": [str(index) for index in range(classes)],
        "transfer": {"source": "digits", "num_samples": 287},
        "clients": facts,
        "rounds": records,
        "final": final | {"offered": offered, "rejected": sum(bool(one["rejected"]) for one in done)},
        "chosen": _chosen() if strategy == "auto" else None,
    }


def _chosen():
    tried = [
        {"beta": beta, "temperature": temperature, "threshold": 0, "gain": 0.002 * beta - 0.01 * temperature,
         "reports": 20}
        for beta in (1, 10, 100)
        for temperature in (1, 3)
    ]  # fmt: skip
    return {"beta": 10, "temperature": 3, "threshold": 0, "tried": tried}


def _round(number, rounds, strategy, levels, mixes, generator):
    """The third round lacks client 1; in the fourth client 2 is refused; client 0 rejects every other teacher."""
    num_clients = len(levels)
    away = {1} if number == 3 else {2} if number == 4 else set()
    members = [index for index in range(num_clients) if index not in away]
    weights = None
    if strategy in BETAS:
        flat = 0.6 + 0.4 * 0.5 ** (number - 1)  # answers at a temperature say less than labels
        believed = smooth((1 - flat) * mixes[members] + flat / mixes.shape[1])
        weights = fusion_weights(divergences(believed), BETAS[strategy]).tolist()
    clients = {}
    for index in range(num_clients):
        if index in away:
            absent = number == 3
            clients[str(index)] = _figures("absent" if absent else "refused")
            clients[str(index)]["reason"] = None if absent else "probabilities that are not finite"
            continue
        own = float(numpy.clip(levels[index] * (1 - 0.5**number) + generator.normal(0, 0.01), 0, 1))
        taught = strategy in BETAS and number > 1
        before = float(numpy.clip(own - 0.02, 0, 1))
        after = float(numpy.clip(before + generator.normal(0.01, 0.01), 0, 1)) if taught else None
        size = 44_700_000 if strategy == "fedavg" else 0 if strategy == "local" else 5740
        clients[str(index)] = _figures("ok") | {
            "own_accuracy": own, "balanced_accuracy": 0.7 * own, "val_before": before if taught else None,
            "val_after": after, "rejected": taught and index == 0 and number % 2 == 0, "bytes_up": size,
            "bytes_down": size if number > 1 else 0, "seconds": 1.2,
        }  # fmt: skip
    known = [one["own_accuracy"] for one in clients.values() if one["own_accuracy"] is not None]
    mean = float(numpy.mean(known))
    return {
        "round": number, "members": members, "weights": weights, "clients": clients, "alma": mean,
        "alma_balanced": 0.7 * mean, "worst": min(known), "sd": float(numpy.std(known)),
        "notes": ["fewer answers than the quorum: nothing was fused"] if number == rounds else [],
    }  # fmt: skip


def _figures(status):
    nothing = dict.fromkeys(
        ("reason", "own_accuracy", "balanced_accuracy", "val_before", "val_after", "bytes_up", "bytes_down", "seconds")
    )
    return nothing | {"status": status, "rejected": False}


def write_federation(folder, results):
    """A run folder that holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder
