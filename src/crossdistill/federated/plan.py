"""One federated run, or several strategies and seeds of it, simulated on this machine into one folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import crossdistill.federated.panels  # noqa: F401  (registers the panels of its report)
from crossdistill.engine import reporter
from crossdistill.errors import InputError
from crossdistill.federated.centralised import pool_and_train
from crossdistill.federated.knowledge import check_transport
from crossdistill.federated.private import check_network
from crossdistill.federated.results import federation_of, results_of
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.server import Federation
from crossdistill.federated.settings import FederateSettings, check_private, load_settings
from crossdistill.federated.simulation import simulate
from crossdistill.federated.sites import Site, sites_of
from crossdistill.federated.strategy import STRATEGIES
from crossdistill.report import write_report
from crossdistill.runs.compose import model_of
from crossdistill.runs.folder import RunFolder
from crossdistill.runs.plan import check_seeds
from crossdistill.runs.results import Results
from crossdistill.settings import ModelSettings

Say = Callable[[str], None]


def federate(
    data: str,
    out: str | Path,
    *,
    clients: int = 10,
    models: Sequence[str] = ("cnn", "transformer", "mlp"),
    strategies: Sequence[str] = ("knfu",),
    rounds: int | None = None,
    seeds: Sequence[int] = (0,),
    overrides: Iterable[str] = (),
    workers: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Simulate owners who share neither data nor weights, and fuse what they know.

    Args:
        data: as for ``--data``.
        out: the folder of the run, made here.
        models: networks, dealt to the clients in turn: names, or the words cnn, transformer and mlp.
        strategies: names that ``crossdistill federate --help`` lists; several make one table.
        rounds: default 10.
        seeds: several make one table.
        overrides: any setting as ``key=value``, such as ``"partition.alpha=0.1"``.
        workers: processes that clients share; 0 runs them in this one.
        resume: go on with what is in ``out``.
        dry_run: build everything, run a short round, write nothing.
        quiet: no progress on the terminal.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: anything that the caller can mend.
    """
    tree: dict[str, Any] = {"data": {"source": data}, "clients": clients, "models": list(models)}
    if rounds is not None:
        tree["rounds"] = rounds
    settings = load_settings(tree, overrides)
    how = {"resume": resume, "dry_run": dry_run, "quiet": quiet}
    return execute(settings, Path(out), strategies=strategies, seeds=seeds, workers=workers, **how)


def execute(
    settings: FederateSettings,
    out: Path,
    *,
    strategies: Sequence[str],
    seeds: Sequence[int] = (0,),
    workers: int | None = None,
    resume: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> Results:
    """Carry out each strategy with each seed, and write the table and the report; finished ones are not run again."""
    check_seeds(list(seeds))
    members = _members(settings, strategies, seeds)
    first = next(iter(members.values()))
    several = len(members) > 1
    root = RunFolder(out)
    recorded = root.check(first, resume=resume, several=several)
    for one in members.values():
        check(one)
    if dry_run:
        return {"dry_run": {"federate": try_out(first)}}
    if recorded is not None and not several:
        return recorded
    say: Say = reporter("quiet" if quiet else "auto").message
    root.make()
    records, start = [], time.perf_counter()
    for index, (name, one) in enumerate(members.items(), start=1):
        if several:
            say(f"run {index} of {len(members)}: {name}")
        root.begin(first)
        RunFolder(out / name).begin(one)
        records.append(_run(one, out / name, name, say, workers))
    results = results_of(records, first, seconds=time.perf_counter() - start)
    root.write_results(results)
    write_report(out)
    return results


def check(settings: FederateSettings) -> None:
    """Refuse what cannot run, before anything does: strategy, data, networks, transport.

    Raises:
        InputError: naming what does not fit.
    """
    strategy = STRATEGIES.get(settings.strategy).value
    if settings.privacy.on:
        check_private(settings)
    sites = sites_of(settings)
    check_transport(settings.transport.kind, settings.transport.top_k, len(sites[0].class_names))
    names = {settings.model_for(site.client).model_dump_json(): settings.model_for(site.client) for site in sites}
    if strategy.one_architecture and len(names) > 1:
        shown = ", ".join(model.name for model in names.values())
        raise InputError(
            f"strategy {settings.strategy!r} with networks {shown}",
            "one architecture for all, whose weights have a mean",
            "give one --models, or choose a strategy that sends predictions",
        )
    for model in names.values():
        _check_network(model, sites[0], private=settings.privacy.on)


def _check_network(model: ModelSettings, site: Site, *, private: bool) -> None:
    """Build a network once, so that one that does not fit is refused now."""
    made = model_of(model, site.class_names)
    if private:
        check_network(made)


def _members(
    settings: FederateSettings, strategies: Sequence[str], seeds: Sequence[int]
) -> Mapping[str, FederateSettings]:
    """The single runs by their folder; "." where there is one."""
    names = [STRATEGIES.get(one).name for one in strategies]
    if not names or len(set(names)) < len(names):
        raise InputError(f"strategies {list(strategies)}", "different names, one or more", "correct --strategy")
    runs = {
        f"{name}/seed-{seed}": settings.model_copy(update={"strategy": name, "seed": seed})
        for seed in seeds
        for name in names
    }
    return runs if len(runs) > 1 else {".": next(iter(runs.values()))}


def _run(settings: FederateSettings, folder: Path, name: str, say: Say, workers: int | None) -> dict[str, Any]:
    """One strategy with one seed; its record."""
    log = RoundLog(folder)
    if STRATEGIES.get(settings.strategy).value.pools:
        pool_and_train(settings, log, say)
    else:
        simulate(Federation(settings, log, say), folder, workers=workers)
    _note_histograms(log, settings)
    return federation_of(settings, log, folder=name)


def _note_histograms(log: RoundLog, settings: FederateSettings) -> None:
    """Label counts, which whoever simulates has; in a deployment nobody is told."""
    for site in sites_of(settings):
        if site.client in log.clients:
            log.clients[site.client]["histogram"] = site.histogram.tolist()


def try_out(settings: FederateSettings) -> dict[str, Any]:
    """A round of one short epoch in a folder that is deleted again; who has what, in plain data."""
    start = time.perf_counter()
    short = {"epochs": None, "steps": 2}
    trial = settings.model_copy(
        update={
            "rounds": 1,
            "train": settings.train.model_copy(update=short),
            "tune": settings.tune.model_copy(update=short),
        }
    )
    sites = sites_of(settings)
    if not STRATEGIES.get(settings.strategy).value.pools:
        with tempfile.TemporaryDirectory() as folder:
            simulate(Federation(trial, RoundLog(Path(folder)), lambda _: None), Path(folder), workers=0)
    return {
        "strategy": settings.strategy,
        "classes": len(sites[0].class_names),
        "transfer": len(sites[0].transfer),
        "clients": [
            {
                "name": site.name,
                "model": settings.model_for(site.client).name,
                "num_train": len(site.train),
                "num_val": len(site.val),
                "num_classes": int((site.histogram > 0).sum()),
            }
            for site in sites
        ],
        "seconds": time.perf_counter() - start,
    }
