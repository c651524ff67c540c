"""Loopback hosts: plain http to them is allowed, and no proxy is used."""

import pytest

from worker.core.loopback import is_loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.255.0.2", "::1", "0:0::1"])
def test_this_machine_is_known_by_name_and_address(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", [None, "", ".", "localhost..", "localhost.example", "my-localhost", "128.0.0.1", "127.1", "::2", "0.0.0.0"]
)
def test_no_other_host_passes_for_it(host: str | None) -> None:
    assert not is_loopback(host)
