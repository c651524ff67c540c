"""docs/reference.md has every public name of the code, and no other."""

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tests.builders import app_jwt, tracked
from tests.fakes.vault import TOKENS
from tests.fakes.world import World
from tests.trust.logged import events, modules, nodes
from tests.unit.ops.test_metrics import Scraped
from tests.unit.ops.test_page import page
from worker import cli, process, settings
from worker.check_accounts import CheckResult
from worker.core import account
from worker.core.appjwt import Check
from worker.core.errors import Kind, RefreshError, Stage
from worker.core.outcome import Outcome, Result, State, Transition
from worker.core.plan import Reason
from worker.core.record import AccountRecord
from worker.core.status import AccountStatus
from worker.manual import RefreshResult
from worker.settings import Settings
from worker.values import duration
from worker.vault.managed_login import Cause
from worker.vault.operation import Operation

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
RULES = ROOT / "helm" / "appjwt-worker" / "alerts" / "appjwt-worker.rules.yaml"
NONE = "\N{EN DASH}"


@cache
def tables() -> dict[str, list[dict[str, str]]]:
    """Return the rows of the page's tables by heading, each with its cells by column."""
    found: dict[str, list[dict[str, str]]] = {}
    heading, columns = "", list[str]()
    for line in REFERENCE.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            columns = []
        elif not columns:
            columns = _cells(line)
        elif set(line) - set("|-"):
            found.setdefault(heading, []).append(dict(zip(columns, _cells(line), strict=True)))
    return found


def _cells(line: str) -> list[str]:
    return [each.strip().replace("\\|", "|") for each in re.split(r"(?<!\\)\|", line)[1:-1]]


def spans(cell: str) -> list[str]:
    """Return what a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def rows(heading: str, column: str) -> dict[str, dict[str, str]]:
    """Return a table's rows by the names in one of its columns."""
    named = [(name, row) for row in tables()[heading] if column in row for name in spans(row[column])]
    assert len(dict(named)) == len(named), f"docs/reference.md, {heading}: a name is there twice"
    return dict(named)


def column(heading: str, first: str, other: str) -> dict[str, list[str]]:
    """Return what each name of a table has in another column."""
    return {name: spans(row[other]) for name, row in rows(heading, first).items()}


def compare(what: str, documented: Iterable[str], public: Iterable[str]) -> None:
    """Fail with the names that only the page has, or only the code."""
    documented, public = set(documented), set(public)
    faults = [f"{name} is public, but not documented" for name in sorted(public - documented)]
    faults += [f"{name} is documented, but gone" for name in sorted(documented - public)]
    assert not faults, f"docs/reference.md, {what}: {'; '.join(faults)}"


def compare_all(what: str, documented: Mapping[str, Iterable[str]], public: Mapping[str, Iterable[str]]) -> None:
    """Compare the names, then what each of them has."""
    compare(what, documented, public)
    for name in public:
        compare(f"{what}, {name}", documented[name], public[name])


def test_a_name_that_is_missing_and_one_that_is_gone_are_both_named() -> None:
    with pytest.raises(AssertionError, match="x: new is public, but not documented; old is documented, but gone"):
        compare("x", ["both", "old"], ["both", "new"])


def test_every_link_to_a_heading_leads_to_one() -> None:
    for file, anchor in re.findall(r"\]\(([a-z-]+\.md)?#([^)]+)\)", REFERENCE.read_text(encoding="utf-8")):
        text = (REFERENCE.parent / (file or REFERENCE.name)).read_text(encoding="utf-8")
        headings = [each.lower().replace(" ", "-") for each in re.findall("^#+ (.+)$", text, re.MULTILINE)]
        assert anchor in [re.sub(r"[^a-z0-9_-]", "", each) for each in headings]


# The command


def test_every_flag_is_there_with_its_value() -> None:
    public = {flag: action for action in cli._parser()._actions for flag in action.option_strings}  # noqa: SLF001
    documented = {each.partition(" ")[0]: each.partition(" ")[2] for each in rows("Flags", "flag")}
    compare("Flags", documented, public)
    for flag, value in documented.items():
        expected = "|".join(public[flag].choices or [public[flag].metavar or ""])
        assert value.rstrip("…") == expected, f"docs/reference.md: the value of {flag}"


def test_every_exit_status_is_there() -> None:
    constants = {**vars(cli), **vars(process)}
    public = [
        str(value) for name, value in constants.items() if name.isupper() and name[0] != "_" and type(value) is int
    ]
    compare("Exit status", rows("Exit status", "status"), public)
    compare("Exit status, --help", re.findall(r"\d+", cli._parser().epilog or ""), public)  # noqa: SLF001


# Settings


def test_every_setting_is_there_with_its_default_and_its_limits() -> None:
    documented = rows("Settings", "setting")
    compare("Settings", documented, settings.names())
    assert [*documented] == settings.names(), "docs/reference.md: the settings are in another order"
    for name, row in documented.items():
        table, _, key = name.partition(".")
        setting = cast("type[BaseModel]", Settings.model_fields[table].annotation).model_fields[key]
        _compare_setting(name, setting, row["default"], row["values"])


def _compare_setting(name: str, setting: FieldInfo, default: str, values: str) -> None:
    expected: object = "required" if setting.is_required() else NONE
    shown: object = default
    if setting.default not in (None, PydanticUndefined):  # read as from the environment
        expected = setting.default
        shown = TypeAdapter[Any](setting.rebuild_annotation()).validate_python(default.strip("`"))
    assert shown == expected, f"docs/reference.md: the default of {name}"
    bounds = [getattr(each, bound, None) for each in setting.metadata for bound in ("ge", "le")]
    limits = {str(each) if isinstance(each, timedelta) else f"{each:g}" for each in bounds if each is not None}
    numbers = re.findall(r"\b\d[\d.]*[smh]?\b", re.sub("`.*?`", "", values))
    documented = {str(duration(each)) if each[-1] in "smh" else each for each in numbers}
    assert limits <= documented, f"docs/reference.md: the limits of {name}"
    if choices := _choices(setting.annotation):
        compare(f"Settings, values of {name}", spans(values), choices)


def _choices(annotation: Any) -> list[str]:
    kinds = [annotation, *get_args(annotation)]
    return [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def test_the_variables_of_vaults_own_clients_are_there_read_or_not() -> None:
    read = {f"VAULT_{name}": f"vault.{key}" for name, key in settings._VAULT_NAMES.items()}  # noqa: SLF001
    documented = {
        name: row["setting"].split(",")[0].strip("`") for name, row in rows("Environment", "variable").items()
    }
    compare("Environment", map(str, documented.items()), map(str, read.items()))
    section = REFERENCE.read_text(encoding="utf-8").partition("names those that are set:")[2].partition("\n\n")[0]
    unread = settings._UNSUPPORTED_NAMES  # noqa: SLF001
    compare("Environment, not read", spans(section), (f"VAULT_{name}" for name in unread))


# Vault


def test_every_field_of_an_accounts_secret_is_there() -> None:
    compare("Accounts in Vault", rows("Accounts in Vault", "field"), account._KNOWN_FIELDS)  # noqa: SLF001


def test_every_field_of_a_token_and_every_key_of_its_paths_metadata_is_there() -> None:
    world = World()
    world.add_account("le1")
    world.add_account("le2", client_id="")
    refresher = world.refresher()
    for name in ("le1", "le2"):
        refresher.refresh(name)
    compare("Tokens in Vault", rows("Tokens in Vault", "field"), world.data("le1"))
    paths = [path for name in ("le1", "le2") if (path := world.vault.kv.metadata(f"{TOKENS}{name}"))]
    public = {f"custom_metadata.{key}" for path in paths for key in path.custom_metadata} | {"max_versions"}
    compare("Tokens in Vault, metadata", rows("Tokens in Vault", "metadata"), public)


# Fixed words


@pytest.mark.parametrize(
    ("word", "public"),
    [
        ("state", State),
        ("reason", Reason),
        ("outcome", [each.public for each in Result]),
        ("stage", Stage),
        ("kind", Kind),
        ("check", Check),
        ("cause", Cause),
        ("operation", Operation),
    ],
)
def test_every_value_of_a_closed_set_is_there(word: str, public: Iterable[str]) -> None:
    compare(word, rows(word, "value"), public)


# What is seen


def test_every_log_event_is_there_with_its_levels_and_fields() -> None:
    documented = rows("Log events", "event")
    compare("Log events", documented, events())
    for name, event in events().items():
        cell = documented[name]["fields"]
        listed = spans(documented[cell[4:-1]]["fields"]) if cell.startswith("as ") else spans(cell)
        compare(f"Log events, fields of {name}", listed, event.fields)
        compare(f"Log events, levels of {name}", documented[name]["level"].split(", "), event.levels)


def test_every_metric_is_there_with_its_type_and_labels() -> None:
    documented = rows("Metrics", "metric")
    scraped = Scraped(AccountRecord("le1", State.FAILING, tracked=tracked(1800.0), last_success=1.0))
    scraped.metrics.observe_sentinel_request("va", 200, 0.1, app_jwt().iat)
    scraped.metrics.observe_vault_request(Operation.LIST, 200, 0.1)
    error = RefreshError(Stage.VAULT, Kind.TRANSIENT, "x")
    failed = Outcome("le1", Result.FAILED, 0.1, Reason.DUE, error=error)
    scraped.metrics.report(failed, Transition(State.OK, State.FAILING, 1, 0.0, Kind.TRANSIENT, 0.0))
    kinds: dict[str, list[str]] = {}
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scraped.metrics.text().decode()):
        if not family.name.startswith("process_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            kinds[name] = [family.type]
            labels[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
            assert family.samples, f"this test makes no sample of {name}"
    compare_all("Metrics, labels", column("Metrics", "metric", "labels"), labels)
    compare_all("Metrics, types", {name: [row["type"]] for name, row in documented.items()}, kinds)


def test_every_alert_is_there_with_its_severity_and_its_time() -> None:
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
    public = {rule["alert"]: [rule["labels"]["severity"], rule.get("for", NONE)] for rule in rules}
    documented = {name: [row["severity"], row["for"]] for name, row in rows("Alerts", "alert").items()}
    compare_all("Alerts", documented, public)


def test_every_endpoint_is_there_with_its_parameters() -> None:
    trees = {path.stem: tree for path, tree in modules().items() if path.match("serving.py") or path.match("ops/*.py")}
    keys = [key for name in ("serving", "http") for each in nodes(trees[name], ast.Dict) for key in each.keys]
    texts = [key.value for key in keys if isinstance(key, ast.Constant)]
    public: dict[str, list[str]] = {str(text): [] for text in texts if str(text).startswith("/")}
    public["/"] = re.findall(r"parameters\.get\('(\w+)'", ast.unparse(trees["page"]))
    compare_all("Endpoints", column("Endpoints", "path", "parameters"), public)


# JSON


def test_every_json_document_is_there_with_its_members() -> None:
    (tree,) = (tree for path, tree in modules().items() if path.match("worker/cli.py"))
    documented = column("JSON", "document", "members")
    status_json = json.loads(page().json())
    public = {"--refresh": [], "--refresh-all": [], "/status.json": [*status_json]} | {
        f"--{function.name[1:]}": _members(function)
        for function in nodes(tree, ast.FunctionDef)
        if any(ast.unparse(call.func) == "_show" for call in nodes(function, ast.Call))
    }
    public["--refresh-all"] = public["--refresh"]
    compare_all("JSON", documented, public)


def _members(function: ast.FunctionDef) -> list[str]:
    """Return the members of the document that a mode shows."""
    assigned = {ast.unparse(each.targets[0]): each.value for each in nodes(function, ast.Assign)}
    shown = [call.args[1] for call in nodes(function, ast.Call) if ast.unparse(call.func) == "_show"]
    found: list[str] = []
    for document in shown:
        assert isinstance(document, ast.Dict), ast.unparse(document)
        for key, value in zip(document.keys, document.values, strict=True):
            spread = document if key else assigned[ast.unparse(value)]
            assert isinstance(spread, ast.Dict), ast.unparse(spread)
            found += [ast.literal_eval(each) for each in ([key] if key else spread.keys) if each]
    return found


def test_every_field_of_an_object_in_json_is_there() -> None:
    compare("JSON, --refresh", rows("--refresh", "field"), [each.name for each in fields(RefreshResult)])
    compare("JSON, --check", rows("--check", "field"), [each.name for each in fields(CheckResult)])
    status = [*AccountStatus.of("le1", State.OK, remaining=0.0).as_json()]
    compare("JSON, --status", rows("--status", "field"), status)
    (on_page,) = json.loads(page(AccountRecord("le1")).json())["accounts"]
    compare("JSON, /status.json", [*rows("--status", "field"), *rows("/status.json", "field")], on_page)
