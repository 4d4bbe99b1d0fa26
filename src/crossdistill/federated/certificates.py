"""Keys of a federation: a private certificate authority, the server's certificate, and a pair of keys for each node.

In the formats of Flower 1.42: PEM for ``flower-superlink --ssl-ca-certfile, --ssl-certfile, --ssl-keyfile`` and for
``--root-certificates``; OpenSSH for ``flwr supernode register`` (public) and ``flower-supernode
--auth-supernode-private-key``. All keys are on the curve P-384. Private ones have no passphrase, since services start
without anybody to type it, and can be read by their owner only.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from crossdistill.errors import InputError
from crossdistill.files import sync, writing

AUTHORITY_DAYS = 3650
"""How long an authority may sign; a server's certificate ends with it at the latest."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Always in the server's certificate: the SuperLink's own processes reach it there."""

_PRIVATE, _PUBLIC = 0o600, 0o644
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.IGNORECASE)
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

Name = x509.DNSName | x509.IPAddress


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the keys of a federation lie below ``folder``, and which files were ``made`` just now."""

    folder: Path
    made: tuple[Path, ...] = ()

    @property
    def authority(self) -> Path:
        """Certificate of the authority: goes to every site and to whoever submits runs; no secret."""
        return self.folder / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Signs servers' certificates: needed for that alone, and kept offline otherwise."""
        return self.folder / "ca.key"

    @property
    def server(self) -> Path:
        """Certificate of the SuperLink."""
        return self.folder / "server.pem"

    @property
    def server_key(self) -> Path:
        """Private key of the SuperLink; stays on its machine."""
        return self.folder / "server.key"

    def node(self, name: str) -> Path:
        """Private key of a node; stays with its site."""
        return self.folder / "nodes" / name

    def node_public(self, name: str) -> Path:
        """Public key of a node: what is registered with the SuperLink."""
        return self.folder / "nodes" / f"{name}.pub"


def make_certificates(
    out: Path, *, hosts: Sequence[str] = (), nodes: Sequence[str] = (), days: int = 365
) -> Certificates:
    """Write what is missing of a federation's keys below ``out``; what is there is kept.

    With ``hosts``, the names and IP addresses at which the SuperLink is reached, an authority and a certificate of the
    server that holds for them, and for this machine, during ``days``. For each of ``nodes`` a pair of keys: a later
    call adds nodes, and a site can make its own pair, so that its private key never travels.

    Raises:
        InputError: a key that is there already, a certificate there that does not hold for ``hosts``, or a name that
            is none. Nothing is written then.
    """
    files = Certificates(out)
    _check(files, hosts, nodes, days)
    content: list[tuple[Path, bytes, int]] = []
    if hosts and not files.server.exists():
        content += _server(files, _names(hosts), datetime.now(UTC), days)
    for name in nodes:
        content += _pair(files, name)
    with writing(out):
        (out / "nodes" if nodes else out).mkdir(parents=True, exist_ok=True)
        for path, data, mode in content:
            _write_new(path, data, mode)
        sync(out)
    return Certificates(out, tuple(path for path, _, _ in content))


def _check(files: Certificates, hosts: Sequence[str], nodes: Sequence[str], days: int) -> None:
    if not hosts and not nodes:
        raise InputError("neither a host nor a node", "one of them at least", "name the server's host, or a node")
    if not 1 <= days <= AUTHORITY_DAYS:
        raise InputError(f"days={days}", f"a whole number from 1 to {AUTHORITY_DAYS}", "change it")
    for name in nodes:
        if not _NODE.fullmatch(name) or nodes.count(name) > 1:
            expected = "different names of letters, digits, - and _, 64 characters at most"
            raise InputError(f"node {name!r} of {list(nodes)}", expected, "rename it")
        for path in (files.node(name), files.node_public(name)):
            if path.exists():
                action = f"name only new nodes, or remove {path} and register the node again"
                raise InputError(f"node {name}, which has keys already", "a node without keys", action)
    wanted = _names(hosts)  # also refuses what is no host
    for one, other in ((files.server, files.server_key), (files.server_key, files.server)):
        if one.exists() and not other.exists():
            raise InputError(f"{one} without {other.name}", "both or neither", f"put {other} back, or remove {one}")
    if hosts and files.server.exists():
        _check_covered(files, hosts, wanted)


def _check_covered(files: Certificates, hosts: Sequence[str], wanted: Sequence[Name]) -> None:
    """The certificate that is there must hold for every host, since no key is overwritten."""
    held = _read_certificate(files.server).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    missing = [host for host, name in zip((*LOCAL, *hosts), wanted, strict=True) if name not in held]
    if missing:
        raise InputError(
            f"{files.server}, which holds for {', '.join(str(name.value) for name in held)}",
            f"a certificate that also holds for {', '.join(missing)}",
            f"move {files.server.name} and {files.server_key.name} away, and the same authority will make new ones",
        )


def _names(hosts: Sequence[str]) -> list[Name]:
    """This machine's names and those of the hosts, in their order."""
    return [_name(host) for host in (*LOCAL, *hosts)]


def _name(host: str) -> Name:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise InputError(
            f"host {host!r}",
            "a name such as fed.example.org or an IP address, without a scheme and a port",
            "write it as in the address of the SuperLink, foreign letters as xn--…",
        )
    return x509.DNSName(host.lower())


def _server(files: Certificates, names: Sequence[Name], start: datetime, days: int) -> list[tuple[Path, bytes, int]]:
    """The server's key and certificate, and before them the authority's where there is none."""
    content: list[tuple[Path, bytes, int]] = []
    if files.authority.exists() or files.authority_key.exists():
        certificate, key = _read_authority(files)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        certificate = _authority_certificate(key, start)
        content += [(files.authority_key, _pem(key), _PRIVATE), (files.authority, _encoded(certificate), _PUBLIC)]
    end = start + timedelta(days=days)
    if end.replace(microsecond=0) > certificate.not_valid_after_utc:
        raise InputError(
            f"{days} days of an authority that ends on {certificate.not_valid_after_utc:%Y-%m-%d}",
            "a certificate that does not outlast its authority",
            f"give fewer days, or make a new authority in another folder and hand its {files.authority.name} out",
        )
    server_key = ec.generate_private_key(ec.SECP384R1())
    server = _server_certificate(server_key, names, certificate, key, start, end)
    return [*content, (files.server_key, _pem(server_key), _PRIVATE), (files.server, _encoded(server), _PUBLIC)]


def _authority_certificate(key: ec.EllipticCurvePrivateKey, start: datetime) -> x509.Certificate:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # The name tells two authorities apart in what a connection says when it fails.
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"crossdistill authority {identifier.digest.hex()[:8]}")]
    )
    return (
        _builder(key, subject, subject, start, start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[Name],
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    start: datetime,
    end: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crossdistill server")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(key, subject, authority.subject, start, end)
        .add_extension(x509.SubjectAlternativeName(list(dict.fromkeys(names))), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    """What both kinds of certificate have; a site whose clock is a day late still accepts it."""
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start - timedelta(days=1)).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(files: Certificates, name: str) -> list[tuple[Path, bytes, int]]:
    """A node's keys as OpenSSH writes them, with its name as the comment."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return [
        (files.node(name), private, _PRIVATE),
        (files.node_public(name), public + f" {name}\n".encode(), _PUBLIC),
    ]


def _read_authority(files: Certificates) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    for path in (files.authority, files.authority_key):
        if not path.exists():
            raise InputError(f"an authority without {path}", "its certificate and its key", f"put {path.name} back")
    certificate = _read_certificate(files.authority)
    try:
        key = serialization.load_pem_private_key(files.authority_key.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{files.authority_key}: {error}", "a key in PEM without a passphrase", "restore it") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        given = f"{files.authority_key}, which is not the key of {files.authority}"
        raise InputError(given, "a pair", "restore the one that was changed")
    return certificate, key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: {error}", "a certificate in PEM", "restore it") from None


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _encoded(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not exist, never readable by others if it is private."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
