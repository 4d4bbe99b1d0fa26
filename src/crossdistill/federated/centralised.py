"""A run that pools all images, as far as a simulation may: every client is then tested on the common network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from crossdistill.data import HeldSource, TrainLoader
from crossdistill.engine import fit
from crossdistill.federated.client import Client, seed_of
from crossdistill.federated.members import Member
from crossdistill.federated.memory import Memory
from crossdistill.federated.round_log import RoundLog
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.sites import Images, Pooled, Site, sites_of
from crossdistill.federated.strategy import Fused
from crossdistill.methods.none import NoDistillation
from crossdistill.models import StagedModel
from crossdistill.runs.compose import model_of
from crossdistill.settings import ModelSettings, TrainSettings


def pool_and_train(settings: FederateSettings, log: RoundLog, say: Callable[[str], None]) -> None:
    """Train one network of each architecture on all clients' training images, for as many epochs as a client would.

    Epochs are over all images, so that every image is seen as often as in its client. The figures are recorded as
    those of one round.
    """
    if log.standing() is not None and log.closed:
        return
    sites = sites_of(settings)
    images = pooled([site.train for site in sites])
    networks: dict[str, StagedModel] = {}
    for site in sites:
        model = settings.model_for(site.client)
        key = model.model_dump_json()
        if key not in networks:
            say(f"{model.name} on {len(images)} images of {len(sites)} clients")
            networks[key] = _trained(model, images, site, settings, log.folder / "pooled" / str(len(networks)))
        client = Client(site, settings, Memory(log.folder / "clients" / str(site.client)))
        member = _member(site, model)
        log.met(1, [member], [])
        figures = client.test(networks[key])
        log.answered(1, member, {}, notes=(), bytes_up=0, bytes_down=0)
        log.answered(2, member, figures, notes=(), bytes_up=0, bytes_down=0)
    log.fused(1, Fused({}, tuple(site.client for site in sites)))
    log.close(1, chosen=None)
    say(log.line(1) or "nothing was tested")


def pooled(parts: list[Images]) -> Images:
    """The images of all parts as those of one source; of one source they stay where they are."""
    first = parts[0].source
    if all(one.source is first for one in parts):
        return Images(first, np.sort(np.concatenate([one.ids for one in parts])))
    together = HeldSource(Pooled(parts))
    return Images(together, np.arange(len(together.targets), dtype=np.int64))


def _trained(model: ModelSettings, images: Images, site: Site, settings: FederateSettings, folder: Path) -> StagedModel:
    torch.manual_seed(seed_of(settings.seed, 0, 0, 0))
    student = model_of(model, site.class_names)
    train = _as_long(settings)
    loader = TrainLoader(
        images.source,
        images.ids,
        images.source.targets,
        {"student": student.spec.input},
        settings.data.augment,
        seed=settings.seed,
        batch_size=train.batch_size,
        device_batch_size=train.device_batch_size,
        workers=settings.data.workers,
        max_corrupt_share=settings.data.max_corrupt_share,
        balanced=settings.data.sampling == "class_balanced",
    )
    fit(
        student,
        NoDistillation(),
        None,
        loader,
        None,
        settings=train,
        seed=settings.seed,
        device=settings.device,
        out=folder,
        fingerprint=settings.model_dump(mode="json", include={"data", "partition", "transfer", "clients", "safety"}),
    )
    return student


def _as_long(settings: FederateSettings) -> TrainSettings:
    """The loop of all rounds and clients together: as many epochs a client, or as many steps in all."""
    loop, rounds = settings.train, settings.rounds
    length = {"epochs": rounds * (loop.epochs or 1)}
    if loop.steps is not None:
        length = {"steps": rounds * settings.clients * loop.steps}
    return loop.model_copy(update={**length, "eval_every": 10**6, "checkpoint_every": 5})


def _member(site: Site, model: ModelSettings) -> Member:
    return Member(
        node=site.client,
        client=site.client,
        name=site.name,
        model=model.name,
        architecture="",
        num_train=len(site.train),
        num_val=len(site.val),
        num_transfer=len(site.transfer),
        num_test=len(site.test),
        own_test=site.shares is None,
        transfer="",
        class_names=site.class_names,
    )
