"""Targets of secrets: a name from the Domain API or an account becomes an allowed host, or a refusal."""

import json
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from hypothesis import strategies as st
from pydantic import SecretStr

from tests.fuzz.canned import canned
from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import words
from worker.core.account import Account
from worker.core.errors import Kind, RefreshError, Stage
from worker.liveperson.domain_api import DomainApi
from worker.liveperson.hosts import HostResolver

_ALLOWED = (".liveperson.net", "sentinel.test:8443", "exact.test")
_SECRET = "kept-to-itself"
outside = 0
"""Requests that would have left the allow list. None ever did: the run would end."""

_label = st.text("abcdefxyz019", min_size=1, max_size=12)
_labels = st.lists(_label, min_size=1, max_size=3).map(".".join)
_good = _labels.map(lambda labels: f"{labels}.liveperson.net") | st.sampled_from(_ALLOWED[1:])


def _answer(case: str, body: Any, account: str, status: int = 200, by: str = "domain") -> Input:
    text = body if isinstance(body, str) else json.dumps(body)
    return {"case": case, "status": status, "body": text, "account": account, "by": by}


def _named(case: str, hosts: st.SearchStrategy[Any]) -> st.SearchStrategy[Input]:
    """Name the host in an answer of either shape, in a field of the account, or in a token secret found in Vault."""

    def made(host: Any, account: str, shape: int, more: str) -> Input:
        service = {"service": "sentinel", "account": account, "baseURI": host}
        others = [{"service": more, "account": account, "baseURI": "evil.test"}, None, 7, {"service": "Sentinel"}]
        match shape:
            case 0:
                return _answer(case, service, account)
            case 1:
                return _answer(case, {"baseURIs": [*others, service]}, account)
            case 2:
                return _answer(case, [*others, service], account)
            case 3:
                return _answer(case, {"baseURI": host}, account)
            case 4:
                return _answer(case, host if isinstance(host, str) else "x y", account, by="account")
            case _:
                return _answer(case, host if isinstance(host, str) else "x y", account, 503, by="token")

    return st.builds(made, hosts, words, st.integers(0, 5), _label)


_TRICKS = {
    "userinfo": [
        "evil.test@va.liveperson.net",
        "va.liveperson.net@evil.test",
        ":@x.liveperson.net",
        "a:b@c.liveperson.net",
    ],
    "a path": [
        "evil.test/.liveperson.net",
        "evil.test/va.liveperson.net",
        "va.liveperson.net/..",
        "evil.test\\.liveperson.net",
    ],
    "a query": [
        "evil.test?.liveperson.net",
        "evil.test#.liveperson.net",
        "evil.test;.liveperson.net",
        "evil.test&.liveperson.net",
    ],
    "a scheme": [
        "https://va.liveperson.net",
        "http://va.liveperson.net",
        "//va.liveperson.net",
        "javascript:x.liveperson.net",
    ],
    "a port": ["va.liveperson.net:", "va.liveperson.net:0", "va.liveperson.net:x", "va.liveperson.net:0443"],
    "a dot too many": ["va.liveperson.net.", "va..liveperson.net", ".liveperson.net", "va.liveperson.net..", "."],
    "other letters": [
        "v\u00e4.liveperson.net",
        "va\u3002liveperson.net",
        "va.liveper\u017fon.net",
        "va.\u2113iveperson.net",
        "\uff56\uff41.liveperson.net",
    ],
    "blanks": [
        "va.liveperson.net ",
        " va.liveperson.net",
        "va.live person.net",
        "va.liveperson.net\n",
        "evil.test\r\nX: .liveperson.net",
        "evil.test\x00.liveperson.net",
        "\t",
    ],
    "escapes": [
        "evil.test%2f.liveperson.net",
        "evil.test%00.liveperson.net",
        "%65vil.liveperson.net",
        "va.liveperson.net%0d",
    ],
    "signs": ["-a.liveperson.net", "a-.liveperson.net", "a_b.liveperson.net", "*.liveperson.net", "$.liveperson.net"],
    "an IPv6 address": ["[::1]", "[::1]:443", "::1", "[::ffff:127.0.0.1]", "[fe80::1%25eth0].liveperson.net"],
}
_OUTSIDE = [
    "evil.test",
    "liveperson.net",
    "evilliveperson.net",
    "liveperson.net.evil.test",
    "va.liveperson.net.evil.test",
    "127.0.0.1",
    "169.254.169.254",
    "2130706433",
    "0x7f000001",
    "localhost",
    "va.liveperson.net:8443",
    "va.liveperson.net:80",
    "va.liveperson.net:443:443",
    "sentinel.test",
    "sentinel.test:443",
    "exact.test:8443",
    "a.exact.test",
    "xn--va-fka.liveperson.com",
]


def _tricky(case: str, tricks: list[str]) -> st.SearchStrategy[Input]:
    return _named(case, st.builds(lambda trick, label: trick.replace("va", label), st.sampled_from(tricks), _label))


_no_text = (
    st.integers(1)
    | st.just(1.5)
    | st.just(True)
    | st.lists(_label, min_size=1)
    | st.dictionaries(_label, _label, min_size=1)
)
_no_host = st.recursive(_no_text, lambda inner: st.lists(inner, min_size=1, max_size=2), max_leaves=5)
_deep = st.integers(100, 980).map(lambda depth: json.loads("[" * depth + "]" * depth))


def _other(key: str, value: Any) -> Any:
    return lambda account, label: _answer(
        f"another {key}", {"baseURIs": [{"baseURI": "va.liveperson.net", key: f"{label}.{value or account}"}]}, account
    )


CASES: dict[str, st.SearchStrategy[Input]] = {
    "accepted": _named(
        "accepted", st.builds(lambda host, upper: host.upper() if upper else host, _good, st.booleans())
    ),
    "accepted on port 443": _named("accepted on port 443", _labels.map(lambda labels: f"{labels}.liveperson.net:443")),
    "permanent status": st.builds(
        lambda status, account, text: _answer("permanent status", text, account, status),
        st.sampled_from([400, 401, 403, 404, 410]),
        words,
        st.text(max_size=20),
    ),
    "passing status": st.builds(
        lambda status, account, text: _answer("passing status", text, account, status),
        st.sampled_from([408, 429, 500, 502, 503, 504, 599]),
        words,
        st.text(max_size=20),
    ),
    "no JSON": st.builds(
        lambda text, account: _answer("no JSON", text, account),
        st.sampled_from(["", "<html>", "{", "[" * 5000, '{"baseURI": ', "'x'", "9" * 5000, "\xff\xfe", "nul"]),
        words,
    ),
    "no Sentinel in it": st.builds(
        lambda body, account: _answer("no Sentinel in it", body, account),
        st.sampled_from(
            [
                [],
                {},
                7,
                '"x y"',
                True,
                [[]],
                [None],
                {"baseURIs": {}},
                {"baseURIs": None},
                {"baseURI": ""},
                {"baseURI": None},
                {"baseURIs": [{"service": "sentinel"}]},
            ]
        ),
        words,
    ),
    "another service": st.builds(_other("service", "idp"), words, _label),
    "another account": st.builds(_other("account", ""), words, _label),
    "no text": _named("no text", _no_host),
    "deep": _named("deep", _deep),
    **{f"no host: {trick}": _tricky(f"no host: {trick}", tricks) for trick, tricks in _TRICKS.items()},
    "no host: too long": _named("no host: too long", st.integers(64, 90).map(lambda n: f"{'a' * n}.liveperson.net")),
    "outside the allow list": _tricky("outside the allow list", _OUTSIDE),
}

_session, _server = canned()


def run(value: Input) -> str:
    own = value["body"] if value["by"] == "account" else None
    account = Account("le1", value["account"], "client", SecretStr(_SECRET), sentinel_domain=own)
    _server.status, _server.body = value["status"], value["body"].encode("utf-8", "surrogatepass")
    hosts = HostResolver(
        DomainApi(_session, url="https://api.test"),
        cache_ttl=timedelta(hours=1),
        allowed_hosts=_ALLOWED,
        clock=lambda: 0.0,
    )
    try:
        host = hosts.sentinel_host(account, timedelta(seconds=1), value["body"] if value["by"] == "token" else None)
    except RefreshError as error:
        return _refused(error, value)
    finally:
        assert value["by"] == "account" or urlsplit(_server.asked)[:2] == ("https", "api.test")
    where = urlsplit(f"https://{host}/sentinel/api/account/{account.account_id}/app/token?v=1.0")
    allowed = where.port in (None, 443) and str(where.hostname).endswith(".liveperson.net")
    if (
        not (allowed or host in _ALLOWED)
        or "@" in where.netloc
        or where.hostname is None
        or not where.hostname.isascii()
    ):
        global outside  # noqa: PLW0603 - a counter for the report
        outside += 1
        raise AssertionError(f"a secret would go to {host}")
    assert host == host.lower()
    return value["case"] if value["case"].startswith("accepted") else "accepted"


def _refused(error: RefreshError, value: Input) -> str:
    text, case = str(error), str(value["case"])
    assert error.stage is Stage.DOMAIN
    assert text.isprintable(), text
    assert len(text) < 500, text
    assert _SECRET not in text
    if value["by"] == "token":
        assert "answers 503" in text, "what was found in Vault is no more than a help"
        return case if not case.startswith("accepted") else "refused"
    if "answers" in text:
        return "permanent status" if error.kind is Kind.PERMANENT else "passing status"
    for said, reached in (
        ("is not JSON", ("no JSON",)),
        ("names no Sentinel", ("no Sentinel in it", "another service", "another account")),
        ("is no host name", ("no text", "deep", *[each for each in CASES if each.startswith("no host")])),
        ("does not allow", ("outside the allow list",)),
    ):
        if said in text:
            return case if case in reached else reached[0]
    return text


TARGET = Target("domains", CASES, run)
