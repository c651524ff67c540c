"""TLS and headers as Vault and proxies in front of it require: client certificates, another name, CAs in a folder."""

import json
import secrets
import shutil
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sandbox.openbao import OpenBao
from tests.integration.processes import Scene
from tests.integration.servers import Answering, Proxy, Server, http, request, server_tls
from worker import net

NAME = "vault.internal"


@dataclass
class Pki:
    """A CA, and files of what it issued."""

    folder: Path
    ca: trustme.CA

    def client(self, name: str, ca: trustme.CA | None = None) -> tuple[Path, Path]:
        """Return a client's certificate and its key."""
        made = (ca or self.ca).issue_cert(f"{name}.invalid")
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return certificate, key

    def server(self, name: str, *, asks: bool) -> ssl.SSLContext:
        context = server_tls(self.ca, name)
        if asks:
            self.ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    @property
    def file(self) -> Path:
        file = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(file)
        return file


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    folder = tmp_path / "pki"
    folder.mkdir()
    return Pki(folder, trustme.CA())


# A client certificate


class WithClientCertificates(OpenBao):
    """Has a second door: there a client must show a certificate, and the server's own is for another name."""

    def __init__(self, folder: Path, pki: Pki) -> None:
        super().__init__(folder, tls=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.door = f"127.0.0.1:{free.getsockname()[1]}"
        made = pki.ca.issue_cert(NAME)
        certificate, key = folder / "server.pem", folder / "server.key"
        certificate.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        (folder / "door.hcl").write_text(f"""
            listener "tcp" {{
              address = "{self.door}"
              tls_cert_file = {json.dumps(str(certificate))}
              tls_key_file = {json.dumps(str(key))}
              tls_client_ca_file = {json.dumps(str(pki.file))}
              tls_require_and_verify_client_cert = true
            }}
        """)

    def _command(self) -> list[str]:
        return [*super()._command(), f"-config={self.folder / 'door.hcl'}"]


@pytest.fixture
def world(tmp_path: Path, pki: Pki) -> Iterator[Scene]:
    """Set up a world whose command knows the second door only, and its CA from a folder."""
    folder = tmp_path / "openbao"
    folder.mkdir()
    cas = tmp_path / "cas"
    cas.mkdir()
    shutil.copy(pki.file, cas / "ours, renewed in autumn")
    (cas / "README").write_text("The CAs of our Vault.")
    with WithClientCertificates(folder, pki) as openbao, Scene(tmp_path / "world", openbao=openbao) as made:
        made.settings |= {"APPJWT_VAULT_ADDRESS": f"https://{openbao.door}", "BAO_CAPATH": str(cas)}
        made.add_account("le1")
        yield made


@pytest.mark.parametrize("prefix", ["APPJWT_VAULT_", "VAULT_", "BAO_"])
def test_a_vault_that_asks_for_a_certificate_and_has_another_name_is_used(prefix: str, world: Scene, pki: Pki) -> None:
    certificate, key = pki.client("client")
    named = {"CLIENT_CERT": str(certificate), "CLIENT_KEY": str(key), "TLS_SERVER_NAME": NAME}
    done = world.call("--refresh", "le1", "--output", "json", changes={prefix + name: of for name, of in named.items()})
    assert (done.status, done.document["refreshed"]) == (0, 1), done
    assert "settings." not in done.err


def test_without_a_certificate_that_vault_trusts_it_is_said_what_is_missing(world: Scene, pki: Pki) -> None:
    world.settings["VAULT_TLS_SERVER_NAME"] = NAME
    done = world.call("--check", "--output", "json")
    assert done.status == 3
    assert "TLS failed: it asks for a client certificate" in done.document["checks"][0]["detail"]
    certificate, key = pki.client("stranger", trustme.CA())
    pair = {"VAULT_CLIENT_CERT": str(certificate), "VAULT_CLIENT_KEY": str(key)}
    done = world.call("--check", "--output", "json", changes=pair)
    assert done.status == 3
    assert "TLS failed: it refuses the client certificate" in done.document["checks"][0]["detail"]


def test_without_the_name_the_certificate_is_refused(world: Scene, pki: Pki) -> None:
    certificate, key = pki.client("client")
    pair = {"VAULT_CLIENT_CERT": str(certificate), "VAULT_CLIENT_KEY": str(key)}
    done = world.call("--check", "--output", "json", changes=pair)
    assert done.status == 3
    assert "IP address mismatch" in done.document["checks"][0]["detail"]


def test_a_daemon_goes_on_while_its_pair_is_replaced_one_file_after_the_other(world: Scene, pki: Pki) -> None:
    (certificate, key), (new_certificate, new_key) = pki.client("client"), pki.client("renewed")
    pair = {"APPJWT_VAULT_CLIENT_CERT": str(certificate), "APPJWT_VAULT_CLIENT_KEY": str(key)}
    daemon = world.daemon({**pair, "VAULT_TLS_SERVER_NAME": NAME})
    daemon.wait_for("token.refreshed", account="le1")
    new_certificate.replace(certificate)
    failed = daemon.wait_for("settings.reload_failed")
    assert failed["error"] == f"vault.client_cert: {certificate} cannot be used: {key} is another certificate's key"
    assert failed["level"] == "warning"
    world.add_account("le2")
    daemon.wait_for("token.refreshed", account="le2")
    new_key.replace(key)
    world.add_account("le3")
    daemon.wait_for("token.refreshed", account="le3")
    daemon.stop()
    assert len(daemon.events("settings.reload_failed")) == 1
    assert not daemon.events("vault.unavailable")


class Recognising(Server):
    """A server that records the serial number of each request's certificate."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(self._answer, tls=tls)
        self.serials: list[str] = []

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            await request(reader)
            self.serials.append(writer.get_extra_info("peercert")["serialNumber"].lstrip("0"))
            writer.write(http())


def serial(certificate: Path) -> str:
    return f"{x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number:X}"


def test_a_new_pair_is_shown_as_soon_as_it_fits(pki: Pki) -> None:
    (certificate, key), (new_certificate, new_key) = pki.client("client"), pki.client("renewed")
    old, new = serial(certificate), serial(new_certificate)
    failures: list[net.TlsFileError] = []
    with (
        Recognising(pki.server("127.0.0.1", asks=True)) as server,
        net.session(
            user_agent="test",
            ca_cert=str(pki.file),
            client_cert=(str(certificate), str(key)),
            on_reload_failed=failures.append,
        ) as session,
    ):
        assert session.get(server.url, timeout=5).ok
        new_certificate.replace(certificate)
        for _ in range(3):
            assert session.get(server.url, timeout=5).ok
        assert (server.serials, len(failures)) == ([old] * 4, 1)
        new_key.replace(key)
        assert session.get(server.url, timeout=5).ok
        assert (server.serials, len(failures)) == ([old] * 4 + [new], 1)


def protect(_: Path, key: Path) -> None:
    """Give it a passphrase: OpenSSL would ask the terminal for it, and wait."""
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(*form, serialization.BestAvailableEncryption(secrets.token_bytes(16))))


@pytest.mark.parametrize(
    ("option", "spoil", "reason"),
    [
        ("client_cert", lambda certificate, _: certificate.unlink(), "no such file or directory"),
        ("client_key", lambda _, key: key.unlink(), "no such file or directory"),
        (
            "client_cert",
            lambda certificate, _: certificate.write_text("x"),
            "it must hold a certificate, and {key} its",
        ),
        ("client_cert", lambda _, key: key.write_text("x"), "it must hold a certificate, and {key} its"),
        ("client_cert", protect, "it must hold a certificate, and {key} its key without a passphrase, both as PEM"),
    ],
)
def test_a_pair_that_cannot_be_used_is_an_error_that_names_the_file(
    option: str, spoil: Callable[[Path, Path], object], reason: str, pki: Pki
) -> None:
    certificate, key = pki.client("client")
    spoil(certificate, key)
    file = {"client_cert": certificate, "client_key": key}[option]
    with pytest.raises(net.TlsFileError) as caught:
        net.session(user_agent="test", client_cert=(str(certificate), str(key)))
    assert str(caught.value).startswith(f"{option}: {file} cannot be used: {reason.format(key=key)}")


def test_the_command_names_the_setting_and_the_file_that_cannot_be_used(tmp_path: Path, pki: Pki) -> None:
    certificate, key = pki.client("client")
    key.unlink()
    pair = {"APPJWT_VAULT_CLIENT_CERT": str(certificate), "APPJWT_VAULT_CLIENT_KEY": str(key)}
    with Scene(tmp_path / "world", vault_tls=False) as world:
        done = world.call("--status", changes=pair)
    name = "vault.client_key (APPJWT_VAULT_CLIENT_KEY)"
    assert done.err == f"appjwt-worker: {name}: {key} cannot be used: no such file or directory\n"
    assert done.status == 2


# The name


def test_the_servers_name_counts_in_place_of_the_address(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    def session(name: str | None) -> net.Session:
        return net.session(user_agent="test", ca_cert=str(pki.file), server_name=name)

    with Answering(http(), tls=pki.server(NAME, asks=False)) as server, Answering(http()) as plain, Proxy() as proxy:
        for wrong in (None, "other.internal"):
            with session(wrong) as opened, pytest.raises(net.ExchangeError, match="its certificate is refused"):
                opened.get(server.url, timeout=5)
        with session(NAME) as opened:
            assert opened.get(server.url, timeout=5).ok
            assert opened.get(plain.url, timeout=5).ok
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            assert opened.get(f"https://proxied.invalid:{server.port}", timeout=5).ok
            assert proxy.targets == [f"CONNECT proxied.invalid:{server.port}"]
        assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in server.requests[0]


# CAs in a folder


def test_each_pem_file_of_a_folder_counts_whatever_its_name_and_as_soon_as_it_is_there(
    tmp_path: Path, pki: Pki
) -> None:
    """Kubernetes mounts them like this: each a link into a neighbouring folder, which is replaced as a whole."""
    other = trustme.CA()
    data, folder = tmp_path / "data", tmp_path / "mounted"
    for each in (data, folder):
        each.mkdir()
    shutil.copy(pki.file, data / "first.crt")
    (data / "notes.txt").write_bytes(b"\xff no certificate")
    (folder / "..data").symlink_to(data)
    for name in ("first.crt", "second", "notes.txt"):
        (folder / name).symlink_to(Path("..data", name))
    (folder / "second").unlink()
    with (
        Answering(http(), tls=pki.server("127.0.0.1", asks=False)) as first,
        Answering(http(), tls=server_tls(other)) as second,
        net.session(user_agent="test", ca_cert=str(folder)) as session,
    ):
        assert session.get(first.url, timeout=5).ok
        with pytest.raises(net.ExchangeError, match="its certificate is refused"):
            session.get(second.url, timeout=5)
        other.cert_pem.write_to_path(data / "second")
        (folder / "second").symlink_to(Path("..data", "second"))
        for server in (first, second):
            assert session.get(server.url, timeout=5).ok
        (folder / "first.crt").unlink()
        assert session.get(second.url, timeout=5).ok
        with pytest.raises(net.ExchangeError, match="its certificate is refused"):
            session.get(first.url, timeout=5)


@pytest.mark.parametrize(
    "content", [None, "x", "-----BEGIN CERTIFICATE-----\nx"], ids=["nothing", "no PEM", "half a PEM"]
)
def test_a_folder_without_a_certificate_does_not_mean_the_systems(
    content: str | None, tmp_path: Path, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.file))
    folder = tmp_path / "folder"
    folder.mkdir()
    if content:
        (folder / "ca.pem").write_text(content)
    with pytest.raises(net.TlsFileError, match=r"^ca_cert: .*folder.* cannot be used: .*holds .*certificate$"):
        net.session(user_agent="test", ca_cert=str(folder))


# Headers


def test_the_headers_for_what_stands_before_vault_come_with_each_request(tmp_path: Path) -> None:
    """They appear nowhere in the output, though the proxy there repeats them in its error."""
    values = [secrets.token_urlsafe(20) for _ in range(2)]

    async def gatekeeper(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            heads.append((await request(reader)).partition(b"\r\n\r\n")[0].decode())
            writer.write(http(json.dumps({"errors": [f"no: {heads[-1]}"]}).encode(), status="403 No"))

    heads: list[str] = []
    config = tmp_path / "worker.toml"
    config.write_text(f'[vault.headers]\nX-Access-Client = "{values[0]}"\nx-access-secret = "{values[1]}"\n')
    written = f"X-Access-Client={values[0]}, x-access-secret={values[1]}"
    with Scene(tmp_path / "world") as world, Server(gatekeeper) as before_vault:
        world.secrets += values  # whatever the command prints is searched for them
        world.settings["APPJWT_VAULT_ADDRESS"] = before_vault.url
        for flags, changes in (
            (("--config", str(config)), {}),
            ((), {"APPJWT_VAULT_HEADERS": written}),
        ):
            heads.clear()
            done = world.call("--check", "--output", "json", *flags, changes=changes)
            assert done.status == 3
            assert "no: " in done.document["checks"][0]["detail"]
            assert heads
            for head in heads:
                assert [head.count(value) for value in values] == [1, 1]
        daemon = world.daemon({"APPJWT_VAULT_HEADERS": written})
        daemon.wait_for("vault.unavailable")
        daemon.stop()


def test_what_they_hold_is_sent_to_nobody_else(tmp_path: Path, pki: Pki) -> None:
    value = secrets.token_urlsafe(20)
    with Scene(tmp_path / "world") as world, Answering(http(), tls=pki.server("localhost", asks=False)) as sentinel:
        host = f"localhost:{sentinel.port}"
        world.secrets.append(value)
        world.add_account("le1", sentinel_domain=host)
        changes = {
            "APPJWT_VAULT_HEADERS": f"X-Access-Secret={value}",
            "APPJWT_SENTINEL_ALLOWED_HOSTS": host,
            "APPJWT_SENTINEL_CA_CERT": str(pki.file),
        }
        assert world.call("--refresh", "le1", changes=changes).status == 1
        assert sentinel.requests
        assert not [each for each in sentinel.requests if value.encode() in each or b"X-Access" in each]
