"""The proxy for each host, by the environment, without a DNS look-up."""

import os

import pytest

from worker import net

PROXY = "http://proxy.invalid:3128"


@pytest.fixture(autouse=True)
def _one_proxy_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("vault.example", "https://vault.example:8200"),
        (".example", "https://vault.example"),
        ("a.b, vault.example:8200", "https://vault.example:8200"),
        ("*", "https://vault.example"),
        ("10.0.0.0/8", "https://10.1.2.3:8200"),
        ("10.1.2.3", "https://10.1.2.3:8200"),
        ("fd00::/8", "https://[fd12::1]:8200"),
        ("a.b,[fd00::]/8", "https://[fd12::1]"),
        ("fd12:0:0::1", "https://[fd12::1]"),
    ],
)
@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_no_proxy_holds_names_addresses_and_networks(
    variable: str, no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert net.proxy_for(url) == PROXY
    monkeypatch.setenv(variable, no_proxy)
    assert net.proxy_for(url) is None


@pytest.mark.parametrize(
    ("no_proxy", "url"),
    [
        ("example", "https://vault-example"),
        ("fd00::/8", "https://[fe80::1]"),
        ("::/0", "https://10.1.2.3"),
        ("fd00::/8", "https://fd12.example"),
        ("fd00::/8/8,,:", "https://[fd12::1]"),
    ],
)
def test_no_proxy_holds_for_nothing_else(no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert net.proxy_for(url) == PROXY


@pytest.mark.parametrize(
    "url",
    ["https://localhost:8200", "https://127.0.0.2", "https://[::1]", "https://localhost.", "http://vault.example:8200"],
)
def test_neither_loopback_nor_plain_http_has_a_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, PROXY)
    assert net.proxy_for(url) is None


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", ""])
def test_a_proxy_is_shown_without_its_password(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}someone:something@proxy.invalid:3128/")
    assert net.proxy_for("https://vault.example") == PROXY


@pytest.mark.parametrize(
    "named", ["http://", "http://someone:something@", "http://proxy:port", "socks5://proxy:1080", ":"]
)
def test_a_proxy_that_cannot_be_used_is_an_error_without_its_password(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", named)
    with pytest.raises(net.ExchangeError, match=r"^vault\.example:8200: .*proxy") as caught:
        net.proxy_for("https://vault.example:8200")
    assert "some" not in str(caught.value)
