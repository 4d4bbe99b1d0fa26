"""The ClientApp of Flower: a node joins, takes its tasks, and answers them; the same for simulation and deployment."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import traceback
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from crossdistill.data import Source
from crossdistill.errors import InputError
from crossdistill.federated.client import Client
from crossdistill.federated.knowledge import Refused
from crossdistill.federated.memory import Memory
from crossdistill.federated.messages import FACTS, TASK, pack_reply, unpack_task
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.sites import Site, fingerprint, open_own, sites_of

JOIN = "query"
"""The kind of message by which a server learns who is there."""

FAILED = "failed"

_RUN_CODE = "file:"

_PATH = re.compile(r"\S*[/\\]\S*")
"""Words with a slash: names of folders and files say more than a server must know."""

Facts = Mapping[str, Any]
"""What a node says of itself, by the names that its node config has."""


def build_app(local: Facts) -> ClientApp:
    """A ClientApp whose node has these facts, beside those of its node config.

    Args:
        local: ``folder`` to keep networks in, ``threads``, ``epsilon`` (the most that this client spends), and
            ``simulated`` where all is one machine: the server then learns exactly what went wrong, and runs repeat.
    """
    made = ClientApp()
    for register, handler in ((made.query, _join), (made.train, _carry_out), (made.evaluate, _carry_out)):
        register()(_answering(handler, local))
    return made


def _answering(handler: Callable[[Message, Facts], RecordDict], local: Facts) -> Callable[[Message, Context], Message]:
    """Send back what went wrong without the client's paths and data; Flower would send the whole traceback."""

    def answer(message: Message, context: Context) -> Message:
        try:
            content = handler(message, {**local, **context.node_config})
        except InputError as error:
            content = failed(error, f"{error.given}; expected {error.expected}")
        except Refused as error:
            content = failed(error, f"what the server sent: {error}")
        except Exception as error:
            traceback.print_exc()
            content = failed(error, f"{type(error).__name__}{f': {error}' if local.get('simulated') else ''}")
        return Message(content, reply_to=message)

    def failed(error: Exception, words: str) -> RecordDict:
        if not local.get("simulated"):
            print(error, flush=True)  # all of it, on the node's own console
            words = _PATH.sub("…", words)
        return RecordDict({FACTS: ConfigRecord({FAILED: words[:500]})})

    return answer


def _join(message: Message, node: Facts) -> RecordDict:
    """Who this is: its number and name, its network, how many images it has, and hashes of what all must share."""
    settings, site = _opened(message, node)
    model = settings.model_for(site.client)
    facts: dict[str, Any] = {
        "client": site.client,
        "name": site.name[:100],
        "model": model.name,
        "architecture": hashlib.sha256(model.model_dump_json().encode()).hexdigest()[:16],
        "num_train": len(site.train),
        "num_val": len(site.val),
        "num_transfer": len(site.transfer),
        "num_test": len(site.test),
        "own_test": site.shares is None,
        "transfer": _transfer_hash(site),
        "class_names": list(site.class_names),
    }
    return RecordDict({FACTS: ConfigRecord(facts)})


def _carry_out(message: Message, node: Facts) -> RecordDict:
    """A round, or what follows the last one."""
    settings, site = _opened(message, node)
    if "threads" in node:
        torch.set_num_threads(int(node["threads"]))
    task = unpack_task(message.content, num_samples=len(site.transfer), num_classes=len(site.class_names))
    budget = node.get("epsilon")
    client = Client(
        site,
        settings,
        Memory(_folder(settings, site, node)),
        budget=None if budget is None else float(budget),
        simulated=bool(node.get("simulated", False)),
    )
    return pack_reply(client.carry_out(task), site.client, settings)


def _opened(message: Message, node: Facts) -> tuple[FederateSettings, Site]:
    """The settings that the server sent, with what the node says of itself, and the node's images.

    Code that a server names is never run: networks come by name.
    """
    given: Any = message.content[TASK]
    settings = FederateSettings.model_validate_json(given["settings"])
    for model in settings.models:
        if any(str(one).startswith(_RUN_CODE) for one in (model.name, model.init)):
            raise InputError(
                f"model {model.name!r} sent by the server, which runs a file", "a name", "use networks by name"
            )
    if "device" in node:
        settings = settings.model_copy(update={"device": str(node["device"])})
    number = int(node.get("partition-id", 0))
    if "data" in node:
        name, transfer = str(node.get("site", f"client {number}")), node.get("transfer")
        return settings, open_own(settings, client=number, name=name, data=str(node["data"]), transfer=transfer)
    sites = sites_of(settings)
    if not 0 <= number < len(sites):
        raise InputError(
            f"partition-id {number} of {len(sites)} clients", f"a number from 0 to {len(sites) - 1}", "change it"
        )
    return settings, sites[number]


def _folder(settings: FederateSettings, site: Site, node: Facts) -> Path:
    """Where this client keeps its network in this federation: other settings are another federation."""
    root = node.get("folder") or str(Path(tempfile.gettempdir()) / "crossdistill-federated")
    own = settings.model_dump(mode="json", exclude={"patience", "device", "rounds"})
    digest = hashlib.sha256(json.dumps([own, site.name], sort_keys=True).encode()).hexdigest()[:16]
    return Path(str(root)) / f"{digest}-{site.client:05d}"


_HASHES: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


def _transfer_hash(site: Site) -> str:
    """The hash of the transfer set, which all clients of a simulation share: it is made once a process."""
    source = site.transfer.source
    if source not in _HASHES:
        _HASHES[source] = fingerprint(site.transfer)
    return _HASHES[source]


app = build_app({})
