"""The five calls of the port to Vault: the same contract for the fake and for hvac on a real OpenBao.

The last tests are for the real one only: KV version 1, an upgrade while it is used, and a mount or a path that demands
check-and-set of metadata writes, too.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.parse import quote

import pytest
import requests
from hvac.exceptions import InvalidRequest
from pydantic import SecretStr

from sandbox.openbao import OpenBao
from tests.fakes.clock import HOUR, SECOND
from tests.ports.handles import VaultPort
from worker.core.errors import CasMismatchError, Kind, RefreshError
from worker.schedule.boottime import boottime
from worker.vault.errors import RequestFailure, VaultError
from worker.vault.kv import Kv, MetadataPatch, SecretVersion, VaultKv
from worker.vault.login import TokenLogin
from worker.vault.operation import Operation
from worker.vault.session import VaultSession

THEIRS = {"owner": "the chat team"}


@pytest.fixture
def path(vault: VaultPort) -> str:
    return f"{vault.token_folder}le81823118/connector-a"


@pytest.fixture
def port(vault: VaultPort) -> Kv:
    return vault.port


def content(found: SecretVersion) -> tuple[object, ...]:
    return found.number, found.data, found.custom_metadata


def status_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(RefreshError) as caught:
        call()
    return caught.value.status


NOTHING: tuple[object, ...] = (0, None, {})


# list


def test_a_folder_lists_its_keys_and_its_subfolders_with_a_slash(vault: VaultPort, port: Kv) -> None:
    folder = vault.account_folder.rstrip("/")
    assert list(port.list(folder)) == []
    for name in ("le1", "le1/a", "le1/b/c", "12345678"):
        vault.kv.put(f"{folder}/{name}", {"a": "b"})
    assert sorted(port.list(folder)) == ["12345678", "le1", "le1/"]
    assert sorted(port.list(f"{folder}/le1")) == ["a", "b/"]
    assert list(port.list(f"{folder}/12345678")) == []


def test_what_was_deleted_or_has_only_metadata_is_listed_until_it_is_removed(vault: VaultPort, port: Kv) -> None:
    folder = vault.account_folder.rstrip("/")
    vault.kv.put(f"{folder}/deleted", {"a": "b"})
    vault.kv.delete(f"{folder}/deleted")
    vault.kv.set_metadata(f"{folder}/empty", custom_metadata=THEIRS)
    assert sorted(port.list(folder)) == ["deleted", "empty"]
    vault.kv.remove(f"{folder}/deleted")
    assert list(port.list(folder)) == ["empty"]


# get


def test_where_nothing_was_ever_written_there_is_number_0_and_vaults_clock(
    vault: VaultPort, port: Kv, path: str
) -> None:
    found = port.get(path)
    assert content(found) == NOTHING
    assert (found.created, found.deletion_time) == (None, None)
    assert abs(found.now - vault.now()) < 5 * SECOND


def test_where_there_is_only_metadata_there_is_number_0(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.set_metadata(path, custom_metadata=THEIRS)
    assert content(port.get(path)) == NOTHING
    assert port.get_metadata(path) == THEIRS


def test_the_newest_version_and_each_before_it_can_be_read(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.set_metadata(path, max_versions=2, custom_metadata=THEIRS)
    for each in "abc":
        vault.kv.put(path, {"written": each})
    assert content(port.get(path)) == content(port.get(path, 3)) == (3, {"written": "c"}, THEIRS)
    assert content(port.get(path, 2)) == (2, {"written": "b"}, THEIRS)
    assert content(port.get(path, 1)) == NOTHING, "trimmed"
    assert content(port.get(path, 4)) == NOTHING, "not there yet"
    found = port.get(path)
    assert found.created is not None
    assert abs(found.created - vault.now()) < 5 * SECOND
    assert found.deletion_time is None


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_a_version_that_was_deleted_or_destroyed_keeps_its_number_and_has_no_data(
    vault: VaultPort, port: Kv, path: str, way: str
) -> None:
    vault.kv.put(path, {"a": "1"})
    vault.kv.put(path, {"a": "2"})
    vault.kv.set_metadata(path, custom_metadata=THEIRS)
    getattr(vault.kv, way)(path)
    assert content(port.get(path)) == (2, None, THEIRS)
    assert content(port.get(path, 1)) == (1, {"a": "1"}, THEIRS)
    assert port.get_metadata(path) == THEIRS


def test_a_version_that_was_undeleted_is_back(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.put(path, {"a": "b"})
    vault.kv.delete(path)
    vault.kv.undelete(path)
    found = port.get(path)
    assert (content(found), found.deletion_time) == ((1, {"a": "b"}, {}), None)


def test_when_vault_will_delete_a_version_is_told_and_afterwards_it_reads_as_deleted(
    vault: VaultPort, port: Kv, path: str
) -> None:
    vault.kv.set_metadata(path, delete_version_after=SECOND)
    vault.kv.put(path, {"a": "b"})
    found = port.get(path)
    assert found.created is not None
    assert found.deletion_time == found.created + SECOND
    assert content(found) == (1, {"a": "b"}, {})
    vault.wait(1.05 * SECOND)
    again = port.get(path)
    assert (content(again), again.deletion_time) == ((1, None, {}), found.deletion_time)


# put


def written(port: Kv, path: str, cas: int) -> int:
    return port.put(path, {"written": "here"}, cas).number


def test_a_put_makes_the_next_version_and_tells_what_became_of_it(vault: VaultPort, port: Kv, path: str) -> None:
    first = port.put(path, {"a": "1"}, 0)
    assert content(first) == (1, None, {})
    vault.kv.set_metadata(path, delete_version_after=HOUR, custom_metadata=THEIRS)
    second = port.put(path, {"a": "2"}, 1)
    assert len({None, first.request_id, second.request_id}) == 3
    assert (second.number, second.data) == (2, None)
    assert second.created is not None
    assert abs(second.created - vault.now()) < 5 * SECOND
    assert second.deletion_time == second.created + HOUR
    assert content(port.get(path)) == (2, {"a": "2"}, THEIRS), "a put leaves the metadata alone"


def refuse_all_but(right: int, port: Kv, path: str) -> None:
    """Check-and-set takes no other number; then the right one."""
    before = port.get(path)
    for cas in {0, 1, 2, 3, 4} - {right}:
        with pytest.raises(CasMismatchError) as caught:
            port.put(path, {"written": "over something else"}, cas)
        assert caught.value.kind is Kind.TRANSIENT
    assert content(port.get(path)) == content(before)
    assert written(port, path, right) == right + 1


@pytest.mark.parametrize("harm", [None, "delete", "destroy"])
def test_a_put_names_the_newest_version_whether_it_can_be_read_or_not(
    vault: VaultPort, port: Kv, path: str, harm: str | None
) -> None:
    for _ in range(2):
        vault.kv.put(path, {"a": "b"})
    if harm:
        getattr(vault.kv, harm)(path)
    refuse_all_but(2, port, path)


def test_a_put_over_a_version_that_ran_out_names_that_version(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.set_metadata(path, delete_version_after=SECOND)
    vault.kv.put(path, {"a": "b"})
    vault.wait(1.05 * SECOND)
    assert port.get(path).data is None
    refuse_all_but(1, port, path)


@pytest.mark.parametrize("was", ["new", "only metadata", "wiped"])
def test_a_put_where_there_is_no_version_names_0(vault: VaultPort, port: Kv, path: str, was: str) -> None:
    match was:
        case "only metadata":
            vault.kv.set_metadata(path, custom_metadata=THEIRS)
        case "wiped":
            vault.kv.put(path, {"a": "b"})
            vault.kv.remove(path)
    refuse_all_but(0, port, path)


def test_a_put_whose_answer_is_lost_was_made_and_says_nothing_of_that(vault: VaultPort, port: Kv, path: str) -> None:
    with vault.losing_answers():
        assert status_of(lambda: port.put(path, {"a": "b"}, 0)) is None
    assert content(port.get(path)) == (1, {"a": "b"}, {})


# get_metadata, patch_metadata


def test_a_patch_merges_keys_and_removes_those_that_are_none(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.put(path, {"a": "b"})
    assert port.get_metadata(path) == {}
    vault.kv.set_metadata(path, custom_metadata={**THEIRS, "state": "ok", "old": "x"})
    port.patch_metadata(path, MetadataPatch({"state": "failing", "old": None, "never": None}))
    assert port.get_metadata(path) == {**THEIRS, "state": "failing"}
    assert content(port.get(path)) == (1, {"a": "b"}, {**THEIRS, "state": "failing"})


def test_a_patch_sets_max_versions_only_if_asked_and_nothing_else(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.set_metadata(path, max_versions=7, delete_version_after=HOUR)

    def settings() -> tuple[int, timedelta]:
        metadata = vault.kv.metadata(path)
        assert metadata
        return metadata.max_versions, metadata.delete_version_after

    port.patch_metadata(path, MetadataPatch({"a": "b"}))
    assert settings() == (7, HOUR)
    port.patch_metadata(path, MetadataPatch({}, max_versions=5))
    assert settings() == (5, HOUR)
    assert port.get_metadata(path) == {"a": "b"}


def test_a_patch_where_nothing_is_makes_metadata_only_if_asked(vault: VaultPort, port: Kv, path: str) -> None:
    patch = MetadataPatch({"state": "failing", "never": None}, max_versions=5)
    assert status_of(lambda: port.patch_metadata(path, patch)) == 404
    assert vault.kv.metadata(path) is None
    port.patch_metadata(path, patch, create=True)
    metadata = vault.kv.metadata(path)
    assert metadata
    assert (metadata.versions, metadata.max_versions, metadata.custom_metadata) == ((), 5, {"state": "failing"})


def test_a_patch_that_may_create_merges_into_what_is_there(vault: VaultPort, port: Kv, path: str) -> None:
    vault.kv.set_metadata(path, custom_metadata=THEIRS)
    port.patch_metadata(path, MetadataPatch({"state": "ok"}), create=True)
    assert port.get_metadata(path) == {**THEIRS, "state": "ok"}


# Faults


def test_each_call_fails_without_a_status_where_vault_is_away_and_with_403_where_it_refuses(
    vault: VaultPort, port: Kv, path: str
) -> None:
    vault.kv.put(path, {"a": "b"})
    calls: tuple[Callable[[], object], ...] = (
        lambda: port.list(vault.account_folder.rstrip("/")),
        lambda: port.get(path),
        lambda: port.get(path, 1),
        lambda: port.put(path, {"a": "c"}, 1),
        lambda: port.get_metadata(path),
        lambda: port.patch_metadata(path, MetadataPatch({"a": "b"})),
    )
    with vault.down():
        assert [status_of(call) for call in calls] == [None] * 6
    with vault.denied():
        assert [status_of(call) for call in calls] == [403] * 6
    assert content(port.get(path)) == (1, {"a": "b"}, {})


# The real one alone


@pytest.fixture(scope="module")
def root(openbao: OpenBao, http: requests.Session) -> VaultSession:
    login = TokenLogin(SecretStr(openbao.root_token))
    return VaultSession(openbao.address, login, http=http, namespace=None, timeout=5 * SECOND, clock=boottime)


def kv_at(session: VaultSession, mount: str, *, only_v2: bool = False) -> VaultKv:
    return VaultKv(session, mount, read=Operation.READ_ACCOUNT, only_v2=only_v2)


@pytest.fixture
def old(openbao: OpenBao) -> Iterator[str]:
    """Mount KV version 1 with two accounts."""
    openbao.mount_kv("old", 1)
    for name in ("le1", "deep/le2"):
        secret = {"client_id": "an-app", "client_secret": "unlikely"}
        openbao.client.secrets.kv.v1.create_or_update_secret(f"accounts/{name}", secret, mount_point="old")
    yield "old"
    openbao.client.sys.disable_secrets_engine("old")


def test_version_1_is_listed_and_read_and_has_neither_versions_nor_metadata(root: VaultSession, old: str) -> None:
    port = kv_at(root, old)
    assert port.version() == 1
    assert sorted(port.list("accounts")) == ["deep/", "le1"]
    assert list(port.list("accounts/none")) == []
    found = port.get("accounts/le1")
    assert (found.number, found.created, found.custom_metadata) == (0, None, {})
    assert (found.data or {}).keys() == {"client_id", "client_secret"}
    assert content(port.get("accounts/none")) == NOTHING


def test_version_1_is_refused_where_check_and_set_is_needed(root: VaultSession, old: str) -> None:
    port = kv_at(root, old, only_v2=True)
    for call in (port.version, lambda: port.get("a"), lambda: port.list("a")):
        with pytest.raises(VaultError, match=r"^old is KV version 1, which has no check-and-set") as caught:
            call()
        assert caught.value.kind is Kind.PERMANENT


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_a_list_that_a_policy_cuts_is_read_to_its_end(
    openbao: OpenBao, http: requests.Session, version: int, count: int
) -> None:
    names = [f"le{number}" for number in range(count - 1)] + ["odd name?/"]
    openbao.mount_kv("long", version)
    try:
        for name in names:
            path = f"long/{'data/' if version > 1 else ''}accounts/{quote(name)}" + ("x" if name.endswith("/") else "")
            openbao.client.adapter.post(f"/v1/{path}", json={"data": {"client_id": "c"}})
        cut = 'path "long/*" { capabilities = ["list", "read"]\n pagination_limit = 5 }'
        openbao.policy("cut", cut + ' path "auth/token/lookup-self" { capabilities = ["read"] }')
        login = TokenLogin(SecretStr(openbao.token(["cut"])))
        session = VaultSession(openbao.address, login, http=http, namespace=None, timeout=5 * SECOND, clock=boottime)
        port = kv_at(session, "long")
        assert sorted(port.list("accounts")) == sorted(names)
        assert list(port.list("accounts/odd name?")) == ["x"]
        assert list(port.list("accounts/none")) == []
    finally:
        openbao.client.sys.disable_secrets_engine("long")


@pytest.mark.parametrize("first", ["list", "get"])
def test_a_mount_that_is_upgraded_while_it_is_used_is_read_as_version_2_and_nothing_seems_gone(
    openbao: OpenBao, root: VaultSession, old: str, first: str
) -> None:
    port = kv_at(root, old)
    calls: dict[str, Callable[[], object]] = {
        "list": lambda: sorted(port.list("accounts")),
        "get": lambda: (port.get("accounts/deep/le2").data or {}).get("client_id"),
    }
    found = {"list": ["deep/", "le1"], "get": "an-app"}
    assert {name: call() for name, call in calls.items()} == found
    openbao.client.sys.tune_mount_configuration(old, options={"version": "2"})
    give_up = boottime() + 10

    def upgraded(call: Callable[[], object]) -> object:
        """Return the value as soon as OpenBao has made versions of it: until then its errors are transient."""
        while boottime() < give_up:
            try:
                return call()
            except VaultError as error:
                if error.kind is not Kind.TRANSIENT:
                    raise
        raise TimeoutError

    assert upgraded(calls[first]) == found[first]
    assert {name: upgraded(call) for name, call in calls.items()} == found
    assert port.version() == 2


def test_that_a_mount_is_being_upgraded_passes_by_itself() -> None:
    for who in ("Upgrading", "Waiting for the primary to upgrade"):
        text = f"status 400, {who} from non-versioned to versioned data. This backend will be unavailable"
        assert RequestFailure(text, status=400).kind is Kind.TRANSIENT


@pytest.fixture(params=["mount", "path"])
def strict(request: pytest.FixtureRequest, openbao: OpenBao) -> Iterator[str]:
    """Mount a KV whose metadata at `new` and `used` requires check-and-set; only `used` has data."""
    adapter = openbao.client.adapter
    openbao.mount_kv("strict")
    if request.param == "mount":
        adapter.request("post", "/v1/strict/config", json={"metadata_cas_required": True})
    settings = {"metadata_cas_required": True, "metadata_cas": 0, "custom_metadata": THEIRS}
    adapter.request("post", "/v1/strict/metadata/used", json=settings)
    openbao.client.secrets.kv.v2.create_or_update_secret("used", {"a": "b"}, mount_point="strict")
    with pytest.raises(InvalidRequest, match="metadata check-and-set parameter required"):
        adapter.request("post", "/v1/strict/metadata/used", json={"max_versions": 3})
    yield "strict"
    openbao.client.sys.disable_secrets_engine("strict")


def test_where_metadata_demands_check_and_set_a_patch_brings_it(root: VaultSession, strict: str) -> None:
    port = kv_at(root, strict)
    for state in ("failing", "ok"):
        port.patch_metadata("used", MetadataPatch({"state": state}, max_versions=5))
        assert port.get_metadata("used") == {**THEIRS, "state": state}
    assert content(port.get("used")) == (1, {"a": "b"}, {**THEIRS, "state": "ok"})


def test_where_metadata_demands_check_and_set_it_is_made_for_a_new_path(root: VaultSession, strict: str) -> None:
    port = kv_at(root, strict)
    assert status_of(lambda: port.patch_metadata("new", MetadataPatch({"state": "ok"}))) == 404
    port.patch_metadata("new", MetadataPatch({"state": "ok"}), create=True)
    port.patch_metadata("new", MetadataPatch({"state": "failing"}), create=True)
    assert port.get_metadata("new") == {"state": "failing"}


def test_how_long_a_mount_keeps_versions_is_read_from_its_configuration(openbao: OpenBao, root: VaultSession) -> None:
    openbao.mount_kv("kept")
    port = kv_at(root, "kept")
    for text, retention in (
        ("10s", 10 * SECOND),
        ("90m", timedelta(minutes=90)),
        ("0s", None),
        ("49h1m1s", timedelta(hours=49, minutes=1, seconds=1)),
        ("-1s", None),
    ):
        openbao.client.adapter.request("post", "/v1/kept/config", json={"delete_version_after": text})
        assert port.retention() == retention
    openbao.client.sys.disable_secrets_engine("kept")
