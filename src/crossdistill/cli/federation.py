"""``crossdistill federation``: what a federation of several machines needs before it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from crossdistill.cli import federate
from crossdistill.cli import options as o
from crossdistill.cli.show import print_json, say
from crossdistill.errors import InputError

_HELP = """Prepare a federation of several machines: keys, the app that is submitted, the connection.

Example:
crossdistill federation certificates --out certs --host fed.example.org --node site-a --node site-b

What comes before and after: docs/federated-deployment.md.
"""

app = typer.Typer(help=_HELP, no_args_is_help=True)


@app.command()
def certificates(
    out: Annotated[Path, typer.Option("--out", help="Folder of the keys; what is in it is never overwritten.")],
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or IP address at which sites reach the server.", show_default=False),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option("--node", help="A site that gets a pair of keys.", show_default=False)
    ] = None,
    days: Annotated[int, typer.Option("--days", help="How long the server's certificate holds.")] = 365,
    as_json: o.Json = False,
) -> None:
    """Make the authority, the server's certificate and the keys of sites.

    Example:
    crossdistill federation certificates --out certs --host fed.example.org --node site-a --node site-b

    Without --host only keys of sites are made: to add sites later, or for a site that makes its own. This machine's
    own names are always in the server's certificate.
    """
    with _flower():
        from crossdistill.federated.certificates import make_certificates

    files = make_certificates(out, hosts=tuple(host or ()), nodes=tuple(node or ()), days=days)
    if as_json:
        print_json({"made": [str(path) for path in files.made]})
        return
    for path in files.made:
        say(f"{path}{' (private)' if path.suffix in ('', '.key') else ''}")
    if not files.made:
        say(f"nothing to do: {files.server} holds for {', '.join(host or ())} already")


@app.command(name="app")
def make_app(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder for `flwr run`; its name is the app's.")],
    data: o.Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the run: an absolute path on the machine of the server.")
    ],
    overrides: o.Overrides = None,
    clients: federate.Clients = None,
    alpha: federate.Alpha = None,
    partition: federate.Partition = None,
    samples: federate.Samples = None,
    models: federate.Models = "cnn,transformer,mlp",
    transfer: federate.Transfer = None,
    rounds: federate.Rounds = None,
    strategy: Annotated[str, typer.Option("--strategy", help="One of those of `crossdistill federate`.")] = "knfu",
    device: Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.", show_default="auto")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Write the folder that `flwr run` submits: settings, and the names of the two apps of this package.

    Example:
    crossdistill federation app knee-study --data digits --clients 3 --rounds 10 --out /srv/runs/knee-study

    Options and KEY=VALUE are those of `crossdistill federate`. A site with data of its
    own says so in its node config, and then --data, --partition, --alpha and --samples
    do not concern it.
    """
    tree = federate.tree_of(data, clients, alpha, partition, samples, models, transfer, rounds, device)
    with _flower():
        from crossdistill.federated.app_folder import write_app
        from crossdistill.federated.server_app import check_deployed
        from crossdistill.federated.settings import load_settings

    settings = load_settings({**tree, "strategy": strategy}, overrides or ())
    check_deployed(settings)
    write_app(folder, settings.model_dump_json(), out=out, resume=resume)
    say(f"{folder}: start it with `flwr run {folder} CONNECTION --stream`")


@app.command()
def connection(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What `flwr run` will call it.")],
    address: Annotated[str, typer.Option("--address", help="HOST:PORT of the SuperLink.")],
    ca: Annotated[Path, typer.Option("--ca", help="The authority's certificate.")],
) -> None:
    """Tell Flower where the server is, in config.toml of FLWR_HOME (~/.flwr).

    Example:
    crossdistill federation connection fed --address fed.example.org:8000 --ca certs/ca.crt
    """
    with _flower():
        from crossdistill.federated.app_folder import write_connection

    home = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    path = write_connection(home, name, address=address, authority=ca)
    say(f"connection {name} is in {path}")


@contextmanager
def _flower() -> Iterator[None]:
    """Say which extra brings a package that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"the package {error.name}, which is not there",
            "Flower and what it brings",
            'pip install "crossdistill[federated]"',
        ) from error
