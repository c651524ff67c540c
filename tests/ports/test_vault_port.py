"""The stores of accounts and tokens, which are the product's, over the fake port and over a real OpenBao."""

from datetime import timedelta
from typing import Final

import pytest

from tests.builders import account_secret, app_jwt, usable
from tests.fakes.clock import HOUR, SECOND
from tests.fakes.vault import Metadata
from tests.ports.handles import VaultPort
from worker.core.account import Absence
from worker.core.appjwt import AppJWT
from worker.core.errors import (
    CasMismatchError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)

NAME = "le81823118/connector-a"
OURS = {"managed_by": "appjwt-worker"}


@pytest.fixture
def path(vault: VaultPort) -> str:
    """Return the path of NAME's token."""
    return vault.token_folder + NAME


@pytest.fixture
def token(vault: VaultPort) -> AppJWT:
    return app_jwt(vault.now())


def write(vault: VaultPort, token: AppJWT) -> int:
    """Write over what is there, as a refresh does."""
    return vault.tokens.write(NAME, token, {"sentinel_host": "va.example"}, vault.tokens.read(NAME)).version


def metadata_of(vault: VaultPort, path: str) -> Metadata:
    found = vault.kv.metadata(path)
    assert found is not None
    return found


def unmanaged(vault: VaultPort) -> UnmanagedSecretError:
    with pytest.raises(UnmanagedSecretError) as caught:
        vault.tokens.read(NAME)
    return caught.value


# Accounts


def test_names_are_found_at_every_depth_and_an_empty_prefix_has_none(vault: VaultPort) -> None:
    assert vault.accounts.names() == frozenset()
    names = {"le1", "le1/a", "le1/b/c", "12345678"}
    for name in names:
        vault.kv.put(vault.account_folder + name, account_secret())
    assert vault.accounts.names() == names


def test_an_account_is_read_as_it_is_written(vault: VaultPort) -> None:
    secret = account_secret(scope="msg.consumer", sentinel_domain="va.example")
    vault.kv.put(vault.account_folder + NAME, secret)
    account = usable(vault.accounts.read(NAME))
    assert (account.name, account.account_id, account.client_id) == (NAME, "le81823118", secret["client_id"])
    assert account.client_secret.get_secret_value() == secret["client_secret"]
    assert (account.scope, account.sentinel_domain) == ("msg.consumer", "va.example")


def test_a_deleted_account_is_gone_but_listed_until_it_is_removed(vault: VaultPort) -> None:
    where = vault.account_folder + NAME
    assert vault.accounts.read(NAME) is Absence.REMOVED
    vault.kv.put(where, account_secret())
    vault.kv.delete(where)
    assert vault.accounts.read(NAME) is Absence.REMOVED
    assert vault.accounts.names() == {NAME}
    vault.kv.remove(where)
    assert vault.accounts.read(NAME) is Absence.REMOVED
    assert vault.accounts.names() == frozenset()


def test_an_account_that_is_disabled_invalid_or_badly_named_says_so(vault: VaultPort) -> None:
    vault.kv.put(vault.account_folder + NAME, account_secret(enabled="false"))
    assert vault.accounts.read(NAME) is Absence.DISABLED
    vault.kv.put(vault.account_folder + NAME, {"client_id": "only"})
    with pytest.raises(InvalidAccountError, match="client_secret"):
        vault.accounts.read(NAME)
    with pytest.raises(InvalidAccountError):
        vault.accounts.read("../tokens/le1")


# Tokens that are read and written


def test_where_nothing_was_ever_written_there_is_nothing_to_read(vault: VaultPort) -> None:
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.sentinel_host, stored.managed) == (0, None, None, False)
    assert (stored.deletion_time, stored.custom_metadata) == (None, {})
    assert abs(stored.now - vault.now()) < 5 * SECOND


def test_what_was_written_is_read_again(vault: VaultPort, token: AppJWT) -> None:
    assert write(vault, token) == 1
    stored = vault.tokens.read(NAME)
    assert stored.raw == token.raw
    assert (stored.version, stored.sentinel_host, stored.managed) == (1, "va.example", True)
    assert stored.deletion_time is None
    assert write(vault, token) == 2


def test_a_write_over_anything_but_what_was_read_is_refused(vault: VaultPort, token: AppJWT) -> None:
    nothing = vault.tokens.read(NAME)
    write(vault, token)
    first = vault.tokens.read(NAME)
    write(vault, token)
    for outdated in (nothing, first):
        with pytest.raises(CasMismatchError) as caught:
            vault.tokens.write(NAME, app_jwt(vault.now() + HOUR), {}, outdated)
        assert caught.value.kind is Kind.TRANSIENT
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.managed) == (2, token.raw, True)


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_a_deleted_version_reads_as_no_token_and_is_written_over_by_its_number(
    vault: VaultPort, path: str, token: AppJWT, way: str
) -> None:
    # it is a 404, yet a check-and-set of 0 would be refused for ever
    write(vault, token)
    getattr(vault.kv, way)(path)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.managed, stored.deletion_time) == (1, None, True, None)
    assert write(vault, token) == 2
    assert vault.tokens.read(NAME).raw == token.raw


def test_a_version_that_ran_out_reads_as_no_token_and_is_written_over_by_its_number(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    vault.kv.set_metadata(path, delete_version_after=SECOND, custom_metadata=OURS)
    vault.kv.put(path, {"access_token": token.raw.get_secret_value()})
    vault.wait(1.05 * SECOND)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.managed) == (1, None, True)
    assert write(vault, token) == 2


def test_where_all_of_it_was_removed_it_begins_anew(vault: VaultPort, path: str, token: AppJWT) -> None:
    # `kv metadata delete` takes the mark along, and the next check-and-set is 0
    write(vault, token)
    write(vault, token)
    before = vault.tokens.read(NAME)
    vault.kv.remove(path)
    assert vault.tokens.read(NAME).version == 0
    with pytest.raises(CasMismatchError):
        vault.tokens.write(NAME, token, {}, before)
    assert write(vault, token) == 1
    assert metadata_of(vault, path).custom_metadata == OURS


# Tokens: whose they are


@pytest.mark.parametrize("data", [{"password": "theirs"}, {"managed_by": "somebody-else", "access_token": "x"}])
def test_a_unmanaged_secret_is_neither_taken_nor_written_over(
    vault: VaultPort, path: str, data: dict[str, object]
) -> None:
    vault.kv.put(path, data)
    error = unmanaged(vault)
    assert (error.stage, error.kind, error.has_stale_status) == (Stage.VAULT, Kind.PERMANENT, False)
    vault.kv.delete(path)
    unmanaged(vault)


def test_our_mark_in_the_data_alone_makes_it_ours(vault: VaultPort, path: str, token: AppJWT) -> None:
    vault.kv.put(path, {"access_token": token.raw.get_secret_value(), **OURS})
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.managed) == (1, token.raw, False)


def test_a_unmanaged_secret_can_be_handed_over_with_its_own_settings(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    vault.kv.put(path, {"password": "theirs"})
    vault.kv.set_metadata(path, max_versions=20, custom_metadata=OURS)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.managed) == (1, None, True)
    assert write(vault, token) == 2
    assert metadata_of(vault, path).max_versions == 20


def test_a_stranger_who_is_faster_at_a_new_path_keeps_it_as_it_was(vault: VaultPort, path: str, token: AppJWT) -> None:
    nothing = vault.tokens.read(NAME)
    vault.kv.put(path, {"password": "theirs"})
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    before = metadata_of(vault, path)
    with pytest.raises(CasMismatchError):
        vault.tokens.write(NAME, token, {}, nothing)
    assert metadata_of(vault, path) == before
    unmanaged(vault)


def test_a_stranger_who_made_a_path_anew_after_ours_was_deleted_keeps_it(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    for _ in range(2):  # else theirs has the number of ours, and no check-and-set could tell them apart
        write(vault, token)
    vault.kv.delete(path)
    ours = vault.tokens.read(NAME)
    vault.kv.remove(path)
    vault.kv.put(path, {"password": "theirs"})
    before = metadata_of(vault, path)
    with pytest.raises(CasMismatchError):
        vault.tokens.write(NAME, token, {}, ours)
    assert metadata_of(vault, path) == before
    unmanaged(vault)


# Tokens: the mark, after the data


def test_a_read_never_marks_a_path_and_the_first_write_does(vault: VaultPort, path: str, token: AppJWT) -> None:
    vault.tokens.read(NAME)
    assert vault.kv.metadata(path) is None
    write(vault, token)
    metadata = metadata_of(vault, path)
    assert (metadata.max_versions, metadata.custom_metadata) == (5, OURS)
    assert metadata.delete_version_after == timedelta(0)


def test_a_mark_that_somebody_removed_is_set_by_the_next_write(vault: VaultPort, path: str, token: AppJWT) -> None:
    write(vault, token)
    vault.kv.set_metadata(path, max_versions=1, custom_metadata={"managed_by": None})
    assert vault.tokens.read(NAME).managed is False
    write(vault, token)
    metadata = metadata_of(vault, path)
    assert (metadata.max_versions, metadata.custom_metadata) == (5, OURS)


def test_others_keys_of_custom_metadata_are_kept(vault: VaultPort, path: str, token: AppJWT) -> None:
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    write(vault, token)
    assert metadata_of(vault, path).custom_metadata == {"owner": "the chat team", **OURS}


def test_at_most_five_versions_are_kept(vault: VaultPort, path: str, token: AppJWT) -> None:
    assert [write(vault, token) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    assert metadata_of(vault, path).versions == (3, 4, 5, 6, 7)


def test_that_vault_will_delete_a_token_is_told_and_left_as_the_owner_set_it(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    vault.kv.set_metadata(path, delete_version_after=HOUR)
    written = vault.tokens.write(NAME, token, {}, vault.tokens.read(NAME))
    assert written.retention == HOUR
    stored = vault.tokens.read(NAME)
    assert stored.deletion_time is not None
    assert abs(stored.deletion_time - stored.now - HOUR) < 5 * SECOND
    assert metadata_of(vault, path).delete_version_after == HOUR
    vault.kv.set_metadata(path, delete_version_after=timedelta(0))


# Tokens: the account's status in their metadata


STATUS: Final = {"state": "failing", "last_error": "sentinel: va answers 401", "failing_since": "2026-01-01T00:00:00Z"}
CLEARED: Final = dict.fromkeys(STATUS)


def test_the_state_of_an_account_without_a_token_is_read_again_and_makes_no_path_ours(
    vault: VaultPort, path: str
) -> None:
    vault.tokens.write_status(NAME, STATUS | {"gone": None})
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.custom_metadata, stored.managed) == (0, None, STATUS, False)
    vault.kv.put(path, {"password": "theirs"})
    assert unmanaged(vault).has_stale_status


def test_the_state_stands_beside_our_mark_and_others_keys_and_can_be_removed(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    vault.tokens.write_status(NAME, STATUS)
    write(vault, token)
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    assert vault.tokens.read(NAME).custom_metadata == {**STATUS, **OURS, "owner": "the chat team"}
    vault.tokens.write_status(NAME, CLEARED | {"state": "ok"})
    assert vault.tokens.read(NAME).custom_metadata == {"state": "ok", **OURS, "owner": "the chat team"}
    assert metadata_of(vault, path).max_versions == 5


def test_our_state_is_removed_from_a_path_that_is_another_s_and_nothing_else(vault: VaultPort, path: str) -> None:
    vault.tokens.write_status(NAME, STATUS)
    vault.kv.put(path, {"password": "theirs"})
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    assert unmanaged(vault).has_stale_status
    vault.tokens.clear_status(NAME)
    assert not unmanaged(vault).has_stale_status
    metadata = metadata_of(vault, path)
    assert (metadata.versions, metadata.custom_metadata) == ((1,), {"owner": "the chat team"})


def test_to_remove_our_state_makes_no_metadata_where_there_is_none(vault: VaultPort, path: str) -> None:
    with pytest.raises(RefreshError) as caught:
        vault.tokens.clear_status(NAME)
    assert caught.value.status == 404
    assert vault.kv.metadata(path) is None


# Faults


def test_a_vault_that_is_down_is_a_transient_failure_without_a_status(vault: VaultPort, token: AppJWT) -> None:
    stored = vault.tokens.read(NAME)
    with vault.down():
        for call, stage in (
            (vault.accounts.names, Stage.VAULT),
            (lambda: vault.accounts.read(NAME), Stage.CREDENTIALS),
            (lambda: vault.tokens.read(NAME), Stage.VAULT),
            (lambda: vault.tokens.write(NAME, token, {}, stored), Stage.VAULT),
        ):
            with pytest.raises(RefreshError) as caught:
                call()
            assert (caught.value.stage, caught.value.kind, caught.value.status) == (stage, Kind.TRANSIENT, None)
    assert write(vault, token) == 1


def test_a_policy_that_was_taken_away_is_a_permanent_failure_and_no_removal(vault: VaultPort, token: AppJWT) -> None:
    vault.kv.put(vault.account_folder + NAME, account_secret())
    write(vault, token)
    stored = vault.tokens.read(NAME)
    with vault.denied():
        for call in (
            vault.accounts.names,
            lambda: vault.accounts.read(NAME),
            lambda: vault.tokens.read(NAME),
            lambda: vault.tokens.write(NAME, token, {}, stored),
        ):
            with pytest.raises(RefreshError) as caught:
                call()
            assert (caught.value.kind, caught.value.status) == (Kind.PERMANENT, 403)
    assert usable(vault.accounts.read(NAME)).name == NAME


def test_a_write_whose_answer_got_lost_is_there_and_is_no_cas_mismatch(vault: VaultPort, token: AppJWT) -> None:
    write(vault, token)
    stored, newer = vault.tokens.read(NAME), app_jwt(vault.now() + HOUR)
    with vault.losing_answers(), pytest.raises(RefreshError) as caught:
        vault.tokens.write(NAME, newer, {}, stored)
    assert (caught.value.kind, caught.value.status) == (Kind.TRANSIENT, None)
    assert not isinstance(caught.value, CasMismatchError)
    after = vault.tokens.read(NAME)
    assert (after.version, after.raw) == (2, newer.raw)
