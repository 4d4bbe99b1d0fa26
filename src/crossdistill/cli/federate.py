"""``crossdistill federate``: owners who share neither data nor weights, simulated on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from crossdistill.cli import options as o
from crossdistill.cli.show import print_table, say, show_results
from crossdistill.errors import InputError

Models = Annotated[
    str,
    typer.Option(
        "--models",
        help="Networks, dealt to the clients in turn, with commas: names, or cnn, transformer, mlp (small ones).",
    ),
]
Clients = Annotated[
    int | None, typer.Option("--clients", help="How many owners there are.", show_default="10, or one a folder")
]
Alpha = Annotated[
    float | None,
    typer.Option(
        "--alpha", help="How alike their classes are: 0.1 one or two each, 100 all the same.", show_default="0.5"
    ),
]
Partition = Annotated[
    str | None,
    typer.Option(
        "--partition",
        help="dirichlet (with --alpha), shards (a few classes each), column:NAME (of parquet files), "
        "folder (one folder a site below --data folder:PATH).",
        show_default="dirichlet",
    ),
]
Samples = Annotated[
    int | None, typer.Option("--samples", help="Images of each client.", show_default="all, in equal parts")
]
Transfer = Annotated[
    str | None,
    typer.Option(
        "--transfer",
        help="What all answer, without labels: a share of the training images, or a set as for --data.",
        show_default="0.2",
    ),
]
Rounds = Annotated[int | None, typer.Option("--rounds", help="Exchanges of knowledge.", show_default="10")]


def command(
    data: o.Data,
    out: o.Out,
    overrides: o.Overrides = None,
    clients: Clients = None,
    alpha: Alpha = None,
    partition: Partition = None,
    samples: Samples = None,
    models: Models = "cnn,transformer,mlp",
    transfer: Transfer = None,
    rounds: Rounds = None,
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy",
            help="knfu, auto, fedmd, feddf, selective_fd, fedavg, epd_true, or to compare with: local, self, "
            "centralised. Several with commas make one table.",
        ),
    ] = "knfu",
    seeds: o.Seeds = "0",
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that clients share; 0: all in this one.", show_default="one a core"),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.", show_default="auto")] = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    as_json: o.Json = False,
) -> None:
    """Federated distillation (KnFu on Flower): owners exchange predictions, never data or weights.

    Example:
    crossdistill federate --data digits --clients 10 --alpha 0.5 \\
      --strategy knfu,local,self --out runs/federated

    Every client trains a network of its own, answers the images that all have, and is
    taught by what the others know, weighted by how alike their data seem. Accuracy
    (ALMA) is the clients' mean, each on its own distribution. The same apps run on
    separate machines: crossdistill federation --help
    """
    tree = tree_of(data, clients, alpha, partition, samples, models, transfer, rounds, device)

    from crossdistill import federated

    names = [name.strip() for name in strategy.split(",") if name.strip()]
    settings = federated.load_settings(with_sites(tree), overrides or ())
    how = {"resume": resume, "dry_run": dry_run, "quiet": as_json, "workers": workers}
    results = federated.execute(settings, out, strategies=names, seeds=o.parse_seeds(seeds), **how)  # type: ignore[arg-type]
    if "dry_run" in results and not as_json:
        show_trial(results["dry_run"]["federate"])
    else:
        if not as_json:
            show_clients(results["federation"])
        show_results(results, as_json=as_json, out=out)


def tree_of(
    data: str,
    clients: int | None,
    alpha: float | None,
    partition: str | None,
    samples: int | None,
    models: str,
    transfer: str | None,
    rounds: int | None,
    device: str | None,
) -> dict[str, Any]:
    """Settings from the options that simulation and deployment share."""
    o.at_least(2, clients=clients)
    o.at_least(1, samples=samples, rounds=rounds)
    kind, _, column = (partition or "dirichlet").partition(":")
    if kind not in ("dirichlet", "shards", "column", "folder"):
        raise InputError(f"--partition {partition}", "dirichlet, shards, column:NAME or folder", "give one of these")
    if alpha is not None and kind != "dirichlet":
        raise InputError(f"--alpha {alpha:g} with --partition {kind}", "--alpha with dirichlet alone", "drop one")
    tree = o.settings_tree(
        data__source=data,
        clients=clients,
        rounds=rounds,
        device=device,
        partition__kind=kind,
        partition__alpha=alpha,
        partition__column=column or None,
        partition__samples=samples,
    )
    tree["models"] = [name.strip() for name in models.split(",") if name.strip()]
    if transfer is not None:
        tree["transfer"] = _transfer(transfer)
    return tree


def _transfer(given: str) -> dict[str, Any]:
    """A share if it is a number, else a set."""
    try:
        share = float(given)
    except ValueError:
        return {"source": given}
    if not 0 < share < 1:
        raise InputError(f"--transfer {given}", "a share between 0 and 1, or a set as for --data", "change it")
    return {"share": share}


def with_sites(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with a client a site, where sites are folders and nobody said how many there are."""
    from pathlib import Path

    kind, _, path = tree["data"]["source"].partition(":")
    if tree["partition"]["kind"] == "folder" and "clients" not in tree and kind == "folder":
        root = Path(path).expanduser()
        found = [one for one in root.iterdir() if one.is_dir() and one.name[0] != "."] if root.is_dir() else []
        if len(found) > 1:
            return {**tree, "clients": len(found)}
    return tree


def show_clients(records: Sequence[Mapping[str, Any]]) -> None:
    """A line a run: the mean client, the worst one, their spread, and what crossed the network."""
    rows = []
    for record in records:
        final = record["final"]
        sizes = [
            (one.get("bytes_up") or 0) + (one.get("bytes_down") or 0)
            for each in record["rounds"]
            for one in each["clients"].values()
        ]
        shares = [final[name] for name in ("alma", "alma_balanced", "worst", "sd")]
        shown = ["–" if one is None else f"{one:.1%}" for one in shares]
        back = f"{final['rejected']} of {final['offered']}" if final["offered"] else "–"
        rows.append([record["strategy"], str(record["seed"]), *shown, back, f"{sum(sizes) / 1e6:.2f}"])
    columns = ["strategy", "seed", "ALMA", "all classes", "worst", "sd", "went back", "MB sent"]
    print_table(columns, rows, numbers=columns[1:])


def show_trial(trial: Mapping[str, Any]) -> None:
    """What a dry run found, in a few lines."""
    say(f"strategy: {trial['strategy']}, {trial['classes']} classes, {trial['transfer']} images that all answer")
    for one in trial["clients"][:20]:
        held = f"{one['num_train']} images to train on, {one['num_val']} to validate"
        say(f"{one['name']}: {one['model']}, {held}, {one['num_classes']} classes")
    if len(trial["clients"]) > 20:
        say(f"… and {len(trial['clients']) - 20} more")
    say("dry run: everything fits together; nothing was written")
