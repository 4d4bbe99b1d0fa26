"""The ClientApp of Flower: a node joins, takes its tasks, and answers them; the same for simulation and deployment."""

from __future__ import annotations

import hashlib
import re
import traceback
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from crossdistill.data import Source
from crossdistill.errors import InputError, Interrupted
from crossdistill.federated.account import Account
from crossdistill.federated.client import Client, seed_of
from crossdistill.federated.knowledge import Refused
from crossdistill.federated.memory import Memory
from crossdistill.federated.messages import FACTS, TASK, pack_reply, unpack_task
from crossdistill.federated.settings import FederateSettings
from crossdistill.federated.sites import Site, fingerprint, open_own, sites_of
from crossdistill.files import writing

JOIN = "query"
"""The kind of message by which a server learns who is there."""

FAILED = "failed"

RUN_CODE = "file:"
"""How the name of a network begins that is a file of code."""

_RUN = re.compile(r"[0-9a-f]{32}")

_PATH = re.compile(r"\S*[/\\]\S*")
"""Words with a slash: names of folders and files say more than a server must know."""

Facts = Mapping[str, Any]
"""What a node says of itself, by the names that its node config has."""


def build_app(local: Facts) -> ClientApp:
    """A ClientApp whose node has these facts, beside those of its node config.

    Args:
        local: ``folder`` to keep networks in, ``threads``, ``epsilon`` and ``delta`` (the most that this client
            accepts), and ``simulated`` where all is one machine: the server then learns exactly what went wrong, and
            noise repeats.
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
        except Interrupted:
            raise
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
            said = f", expected {_PATH.sub('…', error.expected)}" if isinstance(error, InputError) else ""
            words = f"{type(error).__name__} on the client{said}; its own console says more"
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
    root, run = _root(node), _run_of(message)
    memory = Memory(root / f"{run[:16]}-{site.client:05d}")
    account = _account(root, settings, site, node)
    client = Client(site, settings, memory, account=account, run=run)
    return pack_reply(client.carry_out(task), site.client, settings)


def _run_of(message: Message) -> str:
    """What the server calls this run; networks of another one are no business of it.

    Raises:
        Refused: no name of a run.
    """
    given: Any = message.content[TASK]
    run = str(given.get("run", ""))
    if not _RUN.fullmatch(run):
        raise Refused("a task without the name of its run")
    return run


def _account(root: Path, settings: FederateSettings, site: Site, node: Facts) -> Account:
    """The account of a node's images, which is the same in every run."""
    own = str(node["data"]) if "data" in node else f"client {site.client}"
    name = hashlib.sha256(own.encode()).hexdigest()[:16]
    limits = {key: None if node.get(key) is None else float(node[key]) for key in ("epsilon", "delta")}
    fixed = seed_of(settings.seed, site.client, 0, 6) if node.get("simulated") else None
    return Account(root / f"account-{name}", limits["epsilon"], limits["delta"], fixed)


def _opened(message: Message, node: Facts) -> tuple[FederateSettings, Site]:
    """The settings that the server sent, with what the node says of itself, and the node's images.

    Code that a server names is never run: networks come by name.
    """
    given: Any = message.content[TASK]
    settings = FederateSettings.model_validate_json(given["settings"])
    for model in settings.models:
        if any(str(one).startswith(RUN_CODE) for one in (model.name, model.init)):
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


def _root(node: Facts) -> Path:
    """The folder in which a node keeps what it must remember, which nobody else may read.

    Raises:
        InputError: none is named.
    """
    if not node.get("folder"):
        raise InputError(
            "a node without a folder to keep its networks in", "one of its own", 'add folder="PATH" to its node config'
        )
    root = Path(str(node["folder"]))
    with writing(root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


_HASHES: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()


def _transfer_hash(site: Site) -> str:
    """The hash of the transfer set, which all clients of a simulation share: it is made once a process."""
    source = site.transfer.source
    if source not in _HASHES:
        _HASHES[source] = fingerprint(site.transfer)
    return _HASHES[source]


app = build_app({})
