"""Every refusal of the settings, by an environment or a file that is right but for one thing."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from tests.fuzz.engine import Input, Target
from tests.fuzz.forms import words
from worker import settings
from worker.settings import SettingsError

_words = words.map(lambda word: f"w{word}")
_KEYS = sorted(settings.names())
_DURATIONS = [
    "vault.timeout",
    "accounts.sync_interval",
    "tokens.resync_interval",
    "sentinel.domain_cache_ttl",
    "sentinel.timeout",
]
_PATHS = ["accounts.mount", "accounts.prefix", "tokens.mount", "tokens.prefix", "vault.auth_mount"]
_URLS = ["vault.address", "sentinel.domain_api"]
_NUMBERS = ["sentinel.max_in_flight", "sentinel.max_per_second", "refresh.at", "refresh.jitter"]
_CHOICES = ["sentinel.api_version", "log.level", "log.format", "vault.auth_method"]

right = st.builds(
    lambda host, token: {"vault.address": f"https://{host}.test:8200", "vault.token": f"s3cr3t-{token}"}, _words, _words
)


def _set(case: str, words: str, names: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Input]:
    """Set one setting to a wrong value, in the environment or in the file."""

    def made(base: dict[str, Any], name: str, value: Any, in_file: bool) -> Input:  # noqa: FBT001 - drawn
        return _input(case, words.replace("NAME", name), {**base, name: value}, in_file=in_file)

    return st.builds(made, right, st.sampled_from(names), values, st.booleans())


def _several(case: str, words: str, *changes: Mapping[str, Any]) -> st.SearchStrategy[Input]:
    """Apply one of these sets of changes; None takes a setting away."""
    return st.builds(
        lambda base, change, in_file: _input(case, words, {**base, **change}, in_file=in_file),
        right,
        st.sampled_from(changes),
        st.booleans(),
    )


def _input(
    case: str, words: str, values: Mapping[str, Any], *, in_file: bool = False, env: Any = None, text: str = ""
) -> Input:
    left = {name: value for name, value in values.items() if value is not None}
    return {
        "case": case,
        "words": words,
        "env": {
            **({} if in_file else {settings.variable(name): str(value) for name, value in left.items()}),
            **(env or {}),
        },
        "file": text + (_toml(left) if in_file else ""),
    }


def _toml(values: Mapping[str, Any]) -> str:
    tables: dict[str, list[str]] = {}
    for name, value in values.items():
        table, _, key = name.partition(".")
        tables.setdefault(table, []).append(f"{key} = {json.dumps(value)}")
    return "".join(f"[{table}]\n" + "\n".join(lines) + "\n" for table, lines in tables.items())


def _out_of(case: str, name: str, *values: str) -> st.SearchStrategy[Input]:
    return _set(case, "NAME .*(greater|less) than|at - jitter", [name], st.sampled_from(values))


_far = st.integers(1, 10**6)
_approle = {"vault.auth_method": "approle", "vault.token": None}

CASES: dict[str, st.SearchStrategy[Input]] = {
    "accepted": st.builds(
        lambda base, in_file, seconds: _input(
            "accepted", "", {**base, "vault.timeout": f"{seconds}s", "refresh.at": "0.5"}, in_file=in_file
        ),
        right,
        st.booleans(),
        st.integers(1, 60),
    ),
    "unknown variable": st.builds(
        lambda base, word: _input("unknown variable", f"APPJWT_X{word}", base, env={f"APPJWT_X{word}": "s3cr3t"}),
        right,
        _words,
    ),
    "unknown key": st.builds(
        lambda base, table, word: _input(
            "unknown key", rf"{table}\.x{word}: there is no", {**base, f"{table}.x{word}": "s3cr3t"}, in_file=True
        ),
        right,
        st.sampled_from(sorted({key.partition(".")[0] for key in _KEYS})),
        _words,
    ),
    "unknown table": st.builds(
        lambda base, word: _input("unknown table", "there is no such", {**base, f"x{word}.at": "s3cr3t"}, in_file=True),
        right,
        _words,
    ),
    "no table": st.builds(
        lambda base, word: _input(
            "no table", f"x{word}: must be inside", base, in_file=True, text=f'x{word} = "s3cr3t"\n'
        ),
        right,
        _words,
    ),
    "no TOML": st.builds(
        lambda base, bad: _input("no TOML", "not valid TOML", base, in_file=True, text=bad),
        right,
        st.sampled_from(["s3cr3t", "[", "a = ", "[vault\n", "a = 'x\n", "\x00", "a = [[[[\n"]),
    ),
    "no URL": _set(
        "no URL",
        "NAME .*(must be a URL|begins with a space)",
        _URLS,
        st.builds(
            str.format,
            st.sampled_from(
                [
                    "{}.test",
                    "ftp://{}",
                    "https://",
                    "https://a:s3cr3t@{}",
                    "https://{}:99999",
                    "https://{}:0",
                    "https://{}?x=s3cr3t",
                    "https://{}#x",
                    " https://{}",
                    "https://{} x",
                    "https://[::1",
                    "https://@{}",
                ]
            ),
            _words,
        ),
    ),
    "http": _set(
        "http",
        "plain http only to loopback",
        _URLS,
        st.builds(
            str.format,
            st.sampled_from(
                ["http://{}", "HTTP://{}.test", "hTtp://localhost.{}", "http://127.0.0.1.{}", "http://10.0.0.1/{}"]
            ),
            _words,
        ),
    ),
    "no duration": _set(
        "no duration",
        "NAME .*must be a duration",
        _DURATIONS,
        st.sampled_from(["10", "-1s", "1h30m", "s", "nan", "1e3s", "1 s", "\u0661s?"]) | _words,
    ),
    "endless duration": _set(
        "endless duration", "NAME .*longer than any", _DURATIONS, st.integers(15, 400).map(lambda n: "9" * n + "d")
    ),
    "duration out of range": _set(
        "duration out of range",
        "NAME .*(greater|less) than",
        ["vault.timeout", "sentinel.timeout"],
        st.sampled_from(["0s", "2m", "1d"]) | _far.map(lambda n: f"{n}h"),
    ),
    "no path": _set(
        "no path",
        "NAME .*must be a path",
        _PATHS,
        st.builds(
            str.format,
            st.sampled_from(["{}/../x", "{}//x", "./{}", "{} x", "{}?x", "{}#", "{}%2f", "{}/...", "\u00e4{}", "{}:x"]),
            _words,
        ),
    ),
    "no listen": _set(
        "no listen",
        "NAME .*must be HOST:PORT",
        ["http.listen"],
        st.sampled_from(["x", ":80", "a:99999", "a:", "a b:1", "[x]:1", "a:1:2", "http://a:1"]) | _words,
    ),
    "no number": _set(
        "no number",
        "NAME .*should be a valid",
        _NUMBERS,
        st.builds(str.format, st.sampled_from(["{}", "x{}", "1.5.{}"]), _words),
    ),
    "number out of range": st.one_of(
        *(
            _out_of("number out of range", name, *values)
            for name, values in {
                "sentinel.max_in_flight": ["0", "-1", "65", "9999"],
                "sentinel.max_per_second": ["0", "-1", "1001", "inf", "nan"],
                "refresh.at": ["0", "1", "0.09", "0.91", "-1", "inf", "nan"],
                "refresh.jitter": ["-0.1", "0.21", "inf"],
            }.items()
        )
    ),
    "no choice": _set("no choice", "NAME .*should be '", _CHOICES, _words),
    "no list": _set(
        "no list", "NAME .*at least 1", ["sentinel.allowed_hosts"], st.sampled_from([",", ",,", " , ", " ,"])
    ),
    "at and jitter": _several(
        "at and jitter",
        "at - jitter must be",
        {"refresh.at": "0.1", "refresh.jitter": "0.06"},
        {"refresh.at": "0.9", "refresh.jitter": "0.06"},
        {"refresh.at": "0.85", "refresh.jitter": "0.11"},
    ),
    "one prefix in the other": st.builds(
        lambda base, one, more, swapped, in_file: _input(
            "one prefix in the other",
            "neither may contain",
            {
                **base,
                "accounts.prefix": one if swapped else f"{one}/{more}",
                "tokens.prefix": f"{one}/{more}" if swapped else one,
            },
            in_file=in_file,
        ),
        right,
        _words,
        _words,
        st.booleans(),
        st.booleans(),
    ),
    "two tokens": _several("two tokens", "set one of them", {"vault.token_file": "sink"}),
    "no token": _several("no token", "is token: set vault.token", {"vault.auth_method": "token", "vault.token": None}),
    "no role": _several(
        "no role",
        "missing for the login by",
        {"vault.token": None},
        {"vault.auth_method": "jwt"},
        {"vault.auth_method": "kubernetes"},
    ),
    "approle not complete": _several(
        "approle not complete",
        "is approle: set vault.role_id",
        _approle,
        {**_approle, "vault.secret_id_file": "x"},
    ),
    "no address": _several("no address", "vault.address .*missing|vault.address", {"vault.address": None}),
}

_FOLDER = tempfile.TemporaryDirectory()
_FILE = Path(_FOLDER.name) / "worker.toml"


def run(value: Input) -> str:
    _FILE.write_text(value["file"], encoding="utf-8")
    with mock.patch.dict(os.environ, value["env"], clear=True):
        try:
            loaded = settings.load(_FILE)
        except SettingsError as error:
            text = str(error)
            assert "s3cr3t" not in text, text
            assert text.replace("\n", "").isprintable(), text
            assert re.search(value["words"], text), text
            assert value["case"] != "accepted", text
            return str(value["case"])
    assert "s3cr3t" not in repr(loaded)
    return "accepted"


TARGET = Target("settings", CASES, run)
