"""Answers to a token request, and Vault's refusals: an error body may tell whatever it was sent, in whatever form."""

import json
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from pydantic import SecretStr

from tests.fuzz.canned import canned
from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import FORMS, secrets
from tests.leaks import leaks
from worker.core.account import Account
from worker.core.appjwt import Check, TokenRefusedError
from worker.core.errors import Kind, RefreshError, Stage
from worker.liveperson.sentinel import SentinelClient
from worker.vault.adapter import VaultAdapter
from worker.vault.errors import RequestFailure, VaultError

_BODIES = {
    "in a sentence": "cannot use {} here",
    "as RFC 6749 has it": '{{"error": "invalid_client", "error_description": "{}"}}',
    "as LivePerson has it": '{{"error": {{"time": 1, "message": "{}", "internalCode": 9007}}}}',
    "as a page": "<html><body>{}</body></html>",
    "late in a long page": "<p>" + "x " * 300 + "{}",
    "twice": "{0} {0}",
}
_STATUS = st.sampled_from([400, 401, 403, 404, 408, 418, 429, 500, 502, 503, 599])
_ODD_HEADERS = st.dictionaries(
    st.sampled_from(["Retry-After", "Date", "Content-Type", "Location"]),
    st.sampled_from(
        [
            "",
            "-1",
            "9" * 5000,
            "soon",
            "1e9",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Mon, 99 Xxx 2026",
            " ",
            "\u00b2",
            "0x10",
            "Mon, 01 Jan 0001 00:00:00 +2359",
            "1 Jan 70 0:0 +9999",
            ",",
            "Thu, 01 Jan 1970 00:00:00 -9999",
            "text/html; charset=punycode",
            "application/json; charset=undefined",
        ]
    )
    | st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40),
    max_size=2,
)


def _echo(form: str) -> Any:
    def made(secret: str, body: str, status: int, headers: dict[str, str], cut: int, who: str) -> Input:
        told = FORMS[form](secret)
        text = _BODIES[body].format(told[: max(len(told) * cut // 100, 1)])
        if who == "Vault":
            text = json.dumps({"errors": [text]})
        return {"case": f"told {form}", "by": who, "secret": secret, "status": status, "headers": headers, "body": text}

    return made


def _plain(case: str, bodies: st.SearchStrategy[str], statuses: st.SearchStrategy[int]) -> st.SearchStrategy[Input]:
    return st.builds(
        lambda secret, body, status, headers: {
            "case": case,
            "by": "Vault" if "Vault" in case else "Sentinel",
            "secret": secret,
            "status": status,
            "headers": headers,
            "body": body,
        },
        secrets,
        bodies,
        statuses,
        _ODD_HEADERS,
    )


_no_token = st.sampled_from(
    [
        "{}",
        "[]",
        "null",
        "7",
        '"x"',
        '{"access_token": 7}',
        '{"access_token": ""}',
        '{"access_token": null}',
        '{"access_token": ["x"]}',
        '{"accessToken": "x"}',
        "<html>",
        "",
        "[" * 5000,
        "{" * 9,
        '{"access_token": ' + "9" * 5000 + "}",
        "\xff",
    ]
)
_bearer = st.sampled_from(["Bearer", "bearer", "BEARER", None])
_other_types: st.SearchStrategy[Any] = st.sampled_from(
    [7, [], {}, "", "x" * 99, "a b", "\x1b[2J", "MAC", "Bearer "]
) | st.text(max_size=30).map(lambda text: f"x{text}")
_oauth_errors = st.sampled_from(["invalid_client", "invalid_request", "slow_down", 7, None, {"time": 1}, "\x1b[2J"])
_binary = st.binary(max_size=900).map(lambda content: content.decode("latin-1"))
_VAULT_BODIES = st.sampled_from(
    [
        "",
        "{}",
        "[]",
        "null",
        '{"errors": 7}',
        '{"errors": {"a": 1}}',
        '{"errors": [7, null, [[]]]}',
        '{"errors": null}',
        "<html>",
        "[" * 5000,
        '{"errors": ["' + "x" * 5000 + '"]}',
        '{"errors": ["\\u001b[2J\\r\\n\\ud800"]}',
    ]
)

CASES: dict[str, st.SearchStrategy[Input]] = {
    **{
        f"told {form}": st.builds(
            _echo(form),
            secrets,
            st.sampled_from(sorted(_BODIES)),
            _STATUS,
            _ODD_HEADERS,
            st.integers(60, 100),
            st.sampled_from(["Sentinel", "Vault"]),
        )
        for form in FORMS
    },
    "an error of Sentinel": _plain("an error of Sentinel", _binary, _STATUS),
    "a success without a token": _plain("a success without a token", _no_token, st.sampled_from([200, 201, 204])),
    "a token to bear": _plain(
        "a token to bear",
        _bearer.map(lambda told: json.dumps({"access_token": "x.y.z", "token_type": told})),
        st.just(200),
    ),
    "a token of another type": _plain(
        "a token of another type",
        _other_types.map(lambda told: json.dumps({"access_token": "x.y.z", "token_type": told})),
        st.just(200),
    ),
    "an error as a success": _plain(
        "an error as a success", _oauth_errors.map(lambda code: json.dumps({"error": code})), st.just(200)
    ),
    "an error of Vault": _plain("an error of Vault", _VAULT_BODIES, _STATUS),
}
_PERMANENT = {400, 401, 403, 404, 418}

_session, _server = canned()
_sentinel = SentinelClient(_session, api_version="1.0")


def run(value: Input) -> str:
    _server.status, _server.headers = value["status"], value["headers"]
    _server.body = value["body"].encode("utf-8" if value["by"] == "Vault" else "latin-1", "replace")
    return _by_vault(value) if value["by"] == "Vault" else _by_sentinel(value)


def _by_sentinel(value: Input) -> str:
    account = Account("le1", "le1", "client", SecretStr(value["secret"]))
    try:
        answer = _sentinel.request_token(account, "va.liveperson.net", timedelta(seconds=1))
    except TokenRefusedError as refused:
        return _of_another_type(refused, value)
    except RefreshError as error:
        return _refused(error, value)
    assert answer.raw.get_secret_value() == "x.y.z"
    assert "x.y.z" not in repr(answer)
    assert answer.token_type.lower() == "bearer"
    return "a token to bear"


def _of_another_type(refused: TokenRefusedError, value: Input) -> str:
    _look_at(refused, value)
    assert refused.check == Check.TOKEN_TYPE
    return "a token of another type"


def _refused(error: RefreshError, value: Input) -> str:
    _look_at(error, value)
    assert error.stage is Stage.SENTINEL
    assert error.retry_after is None or timedelta(0) <= error.retry_after
    if "without an access_token" in str(error):
        return "a success without a token"
    assert (error.kind is Kind.PERMANENT) == (error.status in _PERMANENT), error.status
    return str(value["case"])


def _by_vault(value: Input) -> str:
    adapter = VaultAdapter(
        base_uri="https://vault.test",
        token=value["secret"],
        session=_session,
        on_response=lambda _response: None,
        on_warnings=lambda *_: None,
    )
    try:
        adapter.get("/v1/secret/data/x")
    except RequestFailure as failure:
        refused = VaultError.of(failure, None)
    else:
        raise AssertionError("an error is no answer")
    _look_at(refused, value)
    assert "not Vault's" in str(refused) or refused.status == value["status"]
    return str(value["case"])


def _look_at(error: RefreshError | TokenRefusedError, value: Input) -> None:
    text = str(error)
    assert text.isprintable(), text
    assert len(text) < 300, text
    assert not leaks(text, [value["secret"]]), text


TARGET = Target("answers", CASES, run)
