"""Keys of a federation: a real handshake, what Flower reads, and that none is ever overwritten."""

import os
import ssl
import stat
from argparse import Namespace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("flwr")
pytest.importorskip("cryptography")

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from crossdistill.errors import InputError
from crossdistill.federated import certificates
from crossdistill.federated.certificates import Certificates, make_certificates

HOSTS = ("fed.example.org", "10.0.0.7", "*.lab.example", "fd00::7")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_certificates(
        tmp_path_factory.mktemp("keys") / "certs", hosts=HOSTS, nodes=("site-a", "site_B"), days=30
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shake_hands(files: Certificates, host: str, *, authority: Path | None = None) -> str | None:
    """A handshake over memory, client and server in turns; the version of TLS that came of it."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.server, files.server_key)
    client_side = ssl.create_default_context(cafile=authority or files.authority)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version()


@pytest.mark.parametrize(
    "host",
    ["fed.example.org", "10.0.0.7", "gpu.lab.example", "fd00::7", "localhost", "127.0.0.1", "::1"],
)
def test_a_client_that_trusts_the_authority_reaches_every_host(made, host):
    assert shake_hands(made, host) == "TLSv1.3"


@pytest.mark.parametrize("host", ["example.org", "10.0.0.8", "deep.gpu.lab.example"])
def test_other_hosts_are_refused(made, host):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        shake_hands(made, host)


def test_another_authority_is_refused(made, tmp_path):
    other = make_certificates(tmp_path, hosts=HOSTS)
    assert shake_hands(other, "fed.example.org") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(made, "fed.example.org", authority=other.authority)


def test_certificates_say_what_they_are_for(made):
    authority, server = (x509.load_pem_x509_certificate(path.read_bytes()) for path in (made.authority, made.server))
    server.verify_directly_issued_by(authority)
    rights = [one.extensions.get_extension_for_class(x509.BasicConstraints) for one in (authority, server)]
    assert [(one.value.ca, one.critical) for one in rights] == [(True, True), (False, True)]
    now = datetime.now(UTC)
    assert abs(server.not_valid_after_utc - now - timedelta(days=30)) < timedelta(hours=1)
    assert server.not_valid_before_utc < now - timedelta(hours=12)  # for clocks that are late
    assert authority.not_valid_after_utc > now + timedelta(days=3000)


def test_flower_reads_the_keys_of_a_node(made):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    for name in ("site-a", "site_B"):
        arguments = Namespace(auth_supernode_private_key=str(made.node(name)), auth_supernode_public_key=None)
        private, public = _try_setup_client_authentication(arguments)
        assert isinstance(private.curve, ec.SECP384R1)
        assert try_load_public_key(made.node_public(name)) == public_key_to_bytes(public)


def test_every_key_is_another_one(made):
    private = [load_ssh_private_key(made.node(name).read_bytes(), None) for name in ("site-a", "site_B")]
    assert private[0].public_key() != private[1].public_key()
    written = load_ssh_public_key(made.node_public("site-a").read_bytes())
    assert written == private[0].public_key()
    assert made.node_public("site-a").read_text().endswith(" site-a\n")


def test_private_keys_are_for_their_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        files = make_certificates(tmp_path / "new" / "folder", hosts=HOSTS, nodes=("a",))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files.made}
    private = {"ca.key": 0o600, "server.key": 0o600, "a": 0o600}
    assert modes == {**private, "ca.crt": 0o644, "server.pem": 0o644, "a.pub": 0o644}


def test_nodes_are_added_later_and_nothing_else_changes(tmp_path):
    first = make_certificates(tmp_path, hosts=HOSTS, nodes=("a",))
    before = content(tmp_path)
    second = make_certificates(tmp_path, hosts=("fed.example.org",), nodes=("b", "c"))
    after = content(tmp_path)
    assert set(second.made) == {path for name in "bc" for path in (first.node(name), first.node_public(name))}
    assert {name: data for name, data in after.items() if name in before} == before
    assert len(after) == len(before) + 4


def test_a_site_makes_its_own_keys_without_an_authority(tmp_path):
    make_certificates(tmp_path, nodes=("site-c",))
    assert set(content(tmp_path)) == {"nodes/site-c", "nodes/site-c.pub"}


def test_an_authority_whose_key_is_offline_needs_it_for_servers_alone(tmp_path):
    files = make_certificates(tmp_path / "certs", hosts=HOSTS)
    files.authority_key.rename(tmp_path / "safe")
    make_certificates(tmp_path / "certs", hosts=HOSTS, nodes=("a",))
    for path in (files.server, files.server_key):
        path.unlink()
    with pytest.raises(InputError, match=r"ca\.key"):
        make_certificates(tmp_path / "certs", hosts=HOSTS)
    assert not files.server_key.exists()
    (tmp_path / "safe").rename(files.authority_key)
    authority = files.authority.read_bytes()
    make_certificates(tmp_path / "certs", hosts=("new.example.org",))
    assert files.authority.read_bytes() == authority
    assert shake_hands(files, "new.example.org") == "TLSv1.3"


@pytest.mark.parametrize(
    ("spoil", "asked", "words"),
    [
        (lambda files: None, {"nodes": ("new", "a")}, "node a, which has keys already"),
        (lambda files: files.node("a").unlink(), {"nodes": ("a",)}, "node a, which has keys already"),
        (lambda files: None, {"hosts": ("other.example.org",)}, r"also holds for other\.example\.org"),
        (lambda files: files.server.unlink(), {"hosts": HOSTS}, r"server\.key without server\.pem"),
        (lambda files: files.server_key.unlink(), {"hosts": HOSTS}, r"server\.pem without server\.key"),
        (lambda files: files.server.write_text("no"), {"hosts": HOSTS}, "a certificate in PEM"),
    ],
)
def test_what_is_there_is_never_overwritten(tmp_path, spoil, asked, words):
    files = make_certificates(tmp_path, hosts=HOSTS, nodes=("a",))
    spoil(files)
    before = content(tmp_path)
    with pytest.raises(InputError, match=words):
        make_certificates(tmp_path, **asked)
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda files, other: files.authority.unlink(), r"ca\.crt"),
        (lambda files, other: files.authority_key.write_bytes(other.authority_key.read_bytes()), "not the key of"),
        (lambda files, other: files.authority_key.write_text("no"), "a key in PEM"),
    ],
)
def test_half_an_authority_signs_nothing(tmp_path, spoil, words):
    files, other = (make_certificates(tmp_path / name, hosts=HOSTS) for name in ("one", "other"))
    for path in (files.server, files.server_key):
        path.unlink()
    spoil(files, other)
    before = content(files.folder)
    with pytest.raises(InputError, match=words):
        make_certificates(files.folder, hosts=HOSTS)
    assert content(files.folder) == before


def test_a_file_that_appears_meanwhile_is_kept(tmp_path, monkeypatch):
    """Two calls at once: the second finds no key when it looks, and one when it writes."""
    first = make_certificates(tmp_path, hosts=HOSTS, nodes=("a",))
    before = content(tmp_path)
    monkeypatch.setattr(certificates, "_check", lambda *arguments: None)
    with pytest.raises(InputError, match="File exists"):
        make_certificates(tmp_path, nodes=("a",))
    assert content(tmp_path) == before
    assert stat.S_IMODE(first.node("a").stat().st_mode) == 0o600


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_that_no_authority_covers(tmp_path, days):
    with pytest.raises(InputError, match=f"days={days}"):
        make_certificates(tmp_path / "certs", hosts=HOSTS, days=days)
    assert not (tmp_path / "certs").exists()


def test_a_certificate_does_not_outlast_its_authority(tmp_path, monkeypatch):
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 100)
    files = make_certificates(tmp_path, hosts=HOSTS, days=100)
    for path in (files.server, files.server_key):
        path.unlink()
    monkeypatch.setattr(certificates, "AUTHORITY_DAYS", 3650)
    with pytest.raises(InputError, match="101 days of an authority that ends on"):
        make_certificates(tmp_path, hosts=HOSTS, days=101)


@pytest.mark.parametrize(
    "host",
    [
        "https://fed.example.org",
        "fed.example.org:8000",
        "",
        "-a.org",
        "a..b",
        "300.1.1.1",
        "füd.org",
        "a b",
        "*",
        "x" * 64,
    ],
)
def test_what_is_no_host(tmp_path, host):
    with pytest.raises(InputError, match="without a scheme and a port"):
        make_certificates(tmp_path / "certs", hosts=("fed.example.org", host))
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize("nodes", [("../ca",), ("a/b",), ("",), (".hidden",), ("a", "a"), ("a.pub",), ("x" * 65,)])
def test_what_is_no_name_of_a_node(tmp_path, nodes):
    with pytest.raises(InputError, match="different names"):
        make_certificates(tmp_path / "certs", nodes=nodes)
    assert not (tmp_path / "certs").exists()


def test_nothing_was_asked_for(tmp_path):
    with pytest.raises(InputError, match="neither a host nor a node"):
        make_certificates(tmp_path)
