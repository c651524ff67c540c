"""Whom a session trusts and who it is: a TLS context that follows its files."""

import os
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from worker.net import bounded

_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY_MISMATCH = "KEY_VALUES_MISMATCH"


class TlsFileError(Exception):
    """A file cannot be used."""

    def __init__(self, option: str, file: str, reason: str) -> None:
        """:param option: ca_cert, client_cert or client_key."""
        super().__init__(f"{option}: {file} cannot be used: {reason}")
        self.option = option
        self.file = file
        self.reason = reason


class Tls:
    """TlsFileError where a file cannot be used."""

    def __init__(
        self,
        ca_cert: str | None,
        client_cert: tuple[str, str] | None,
        on_reload_failed: Callable[[TlsFileError], object],
    ) -> None:
        """
        :param ca_cert: the only CAs to trust, a PEM file or a folder of such; None = OpenSSL's default paths and
            SSL_CERT_FILE.
        :param client_cert: PEM files with a certificate and its key.
        :param on_reload_failed: called once for each change that cannot be used; what was loaded before serves on.
        """
        self._ca_cert = ca_cert
        self._client_cert = client_cert
        self._on_reload_failed = on_reload_failed
        self._paths = [path for path in (ca_cert, *(client_cert or ())) if path]
        self._lock = threading.Lock()
        self._loaded = [*map(_fingerprint, self._paths)]
        self.context = self._load()

    def reload(self) -> bool:
        """Load the files again if one was replaced; True if the context is another now."""
        found = [*map(_fingerprint, self._paths)]
        if found == self._loaded:
            return False
        with self._lock:
            if found == self._loaded:
                return False  # another thread did it
            self._loaded = found
            try:
                self.context = self._load()
            except TlsFileError as error:  # one of a pair, or the half of a file: the rest is to come
                self._on_reload_failed(error)
                return False
            return True

    def _load(self) -> ssl.SSLContext:
        context = _trust_context(self._ca_cert) if self._ca_cert else ssl.create_default_context()
        context.sslsocket_class = bounded.TLSSocket
        if self._client_cert:
            _load_client_cert(context, *self._client_cert)
        return context


def _trust_context(ca_cert: str) -> ssl.SSLContext:
    file = ca_cert
    try:
        files = _pem_files(ca_cert)
        if not files:
            raise TlsFileError("ca_cert", ca_cert, "no file in it holds a certificate")
        file = files[0]
        context = ssl.create_default_context(cafile=file)
        for file in files[1:]:
            context.load_verify_locations(file)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else _reason(error)
        raise TlsFileError("ca_cert", file, reason) from error
    return context


def _pem_files(path: str) -> list[str]:
    """Return the file, or those of a folder that hold certificates. OpenSSL wants each of a folder named by a hash."""
    if not Path(path).is_dir():
        return [path]
    files = sorted(each for each in Path(path).iterdir() if each.is_file())
    return [str(each) for each in files if _CERTIFICATE in each.read_bytes()]


def _load_client_cert(context: ssl.SSLContext, certificate: str, key: str) -> None:
    for option, file in (("client_cert", certificate), ("client_key", key)):  # OpenSSL would not say which
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise TlsFileError(option, file, _reason(error)) from error
    try:
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        reason = f"{key} is another certificate's key"
        if error.reason != _KEY_MISMATCH:
            reason = f"it must hold a certificate, and {key} its key without a passphrase, both as PEM"
        raise TlsFileError("client_cert", certificate, reason) from error


def _reason(error: OSError) -> str:
    return (error.strerror or "unknown").lower()


def _fingerprint(path: str) -> object:
    """Return what changes when a file, or one in a folder, is replaced, also by one of the same time; None = absent."""
    try:
        status = os.stat(path)  # noqa: PTH116 - at each request
        if stat.S_ISDIR(status.st_mode):
            return sorted((entry.name, *_identity(entry.stat())) for entry in os.scandir(path))
    except OSError:
        return None
    return _identity(status)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino
