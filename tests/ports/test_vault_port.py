"""What refresh.py may rely on of Accounts and Tokens: the fake and the part on a real OpenBao."""

from datetime import timedelta
from typing import Final

import pytest

from tests.builders import account_secret, app_jwt
from tests.fakes.clock import HOUR, SECOND
from tests.ports.handles import VaultPort
from worker.core.appjwt import AppJWT
from worker.core.errors import (
    AccountDisabledError,
    AccountGoneError,
    CasMismatchError,
    ForeignSecretError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
)

NAME = "le81823118/connector-a"
OURS = {"managed_by": "appjwt-worker"}


@pytest.fixture
def path(vault: VaultPort) -> str:
    """Where NAME's token is."""
    return vault.token_folder + NAME


@pytest.fixture
def token(vault: VaultPort) -> AppJWT:
    return app_jwt(vault.now())


def write(vault: VaultPort, token: AppJWT) -> int:
    """Write over what is there, as a refresh does."""
    return vault.tokens.write(NAME, token, {"sentinel_host": "va.example"}, vault.tokens.read(NAME))


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
    account = vault.accounts.read(NAME)
    assert (account.name, account.account_id, account.client_id) == (NAME, "le81823118", secret["client_id"])
    assert account.client_secret.get_secret_value() == secret["client_secret"]
    assert (account.scope, account.sentinel_domain) == ("msg.consumer", "va.example")


def test_a_deleted_account_is_gone_but_listed_until_it_is_removed(vault: VaultPort) -> None:
    where = vault.account_folder + NAME
    with pytest.raises(AccountGoneError):
        vault.accounts.read(NAME)
    vault.kv.put(where, account_secret())
    vault.kv.delete(where)
    with pytest.raises(AccountGoneError) as caught:
        vault.accounts.read(NAME)
    assert (caught.value.stage, caught.value.status) == (Stage.CREDENTIALS, 404)
    assert vault.accounts.names() == {NAME}
    vault.kv.remove(where)
    with pytest.raises(AccountGoneError):
        vault.accounts.read(NAME)
    assert vault.accounts.names() == frozenset()


def test_an_account_that_is_disabled_invalid_or_badly_named_says_so(vault: VaultPort) -> None:
    vault.kv.put(vault.account_folder + NAME, account_secret(enabled="false"))
    with pytest.raises(AccountDisabledError):
        vault.accounts.read(NAME)
    vault.kv.put(vault.account_folder + NAME, {"client_id": "only"})
    with pytest.raises(InvalidAccountError, match="client_secret"):
        vault.accounts.read(NAME)
    with pytest.raises(InvalidAccountError):
        vault.accounts.read("../tokens/le1")


# Tokens that are read and written


def test_where_nothing_was_ever_written_there_is_nothing_to_read(vault: VaultPort) -> None:
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.host, stored.marked) == (0, None, None, False)
    assert stored.kept_for == timedelta(0)
    assert abs(stored.now - vault.now()) < 5 * SECOND


def test_what_was_written_is_read_again(vault: VaultPort, token: AppJWT) -> None:
    assert write(vault, token) == 1
    stored = vault.tokens.read(NAME)
    assert stored.raw == token.raw
    assert (stored.version, stored.host, stored.marked) == (1, "va.example", True)
    assert stored.kept_for == 2 * HOUR
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
    assert (stored.version, stored.raw, stored.marked) == (2, token.raw, True)


@pytest.mark.parametrize("way", ["delete", "destroy"])
def test_a_deleted_version_reads_as_no_token_and_is_written_over_by_its_number(
    vault: VaultPort, path: str, token: AppJWT, way: str
) -> None:
    # FIELD 14: it is a 404, yet a CAS of 0 would be refused for ever
    write(vault, token)
    getattr(vault.kv, way)(path)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.marked) == (1, None, True)
    assert write(vault, token) == 2
    assert vault.tokens.read(NAME).raw == token.raw


def test_a_version_that_ran_out_reads_as_no_token_and_is_written_over_by_its_number(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    # FIELD 14
    vault.kv.set_metadata(path, delete_version_after=SECOND, custom_metadata=OURS)
    vault.kv.put(path, {"access_token": token.raw.get_secret_value()})
    vault.wait(1.05 * SECOND)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.marked) == (1, None, True)
    assert write(vault, token) == 2


def test_where_all_of_it_was_removed_it_begins_anew(vault: VaultPort, path: str, token: AppJWT) -> None:
    # FIELD 22: `kv metadata delete` takes the settings along, and the next CAS is 0
    write(vault, token)
    write(vault, token)
    before = vault.tokens.read(NAME)
    vault.kv.remove(path)
    assert vault.tokens.read(NAME).version == 0
    with pytest.raises(CasMismatchError):
        vault.tokens.write(NAME, token, {}, before)
    assert write(vault, token) == 1
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert metadata.custom_metadata == OURS


# Tokens: whose they are


@pytest.mark.parametrize("data", [{"password": "theirs"}, {"managed_by": "somebody-else", "access_token": "x"}])
def test_a_foreign_secret_is_neither_taken_nor_written_over(
    vault: VaultPort, path: str, data: dict[str, object]
) -> None:
    vault.kv.put(path, data)
    with pytest.raises(ForeignSecretError) as caught:
        vault.tokens.read(NAME)
    assert (caught.value.stage, caught.value.kind) == (Stage.VAULT, Kind.LASTING)
    vault.kv.delete(path)
    with pytest.raises(ForeignSecretError):
        vault.tokens.read(NAME)


def test_our_mark_in_the_data_alone_makes_it_ours(vault: VaultPort, path: str, token: AppJWT) -> None:
    vault.kv.put(path, {"access_token": token.raw.get_secret_value(), **OURS})
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.marked) == (1, token.raw, False)


def test_a_foreign_secret_can_be_handed_over(vault: VaultPort, path: str, token: AppJWT) -> None:
    vault.kv.put(path, {"password": "theirs"})
    vault.kv.set_metadata(path, custom_metadata=OURS)
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.marked) == (1, None, True)
    assert write(vault, token) == 2
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert (metadata.max_versions, metadata.delete_version_after) == (5, 2 * HOUR)


# Tokens: the settings of their paths


@pytest.mark.parametrize(
    ("life", "kept"),
    [(HOUR, 2 * HOUR), (timedelta(minutes=5), timedelta(minutes=65)), (12 * HOUR, 24 * HOUR)],
)
def test_the_settings_are_there_before_the_first_data(
    vault: VaultPort, path: str, life: timedelta, kept: timedelta
) -> None:
    # FIELD 22: delete_version_after does not reach back to a version that is there already
    write(vault, app_jwt(vault.now(), life))
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert (metadata.max_versions, metadata.delete_version_after) == (5, kept)
    assert metadata.custom_metadata == OURS
    assert vault.tokens.read(NAME).kept_for == kept


def test_settings_that_went_missing_are_put_back_with_the_next_write(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    # FIELD 5: the second of two writes fails or is undone, and nobody repairs
    write(vault, token)
    vault.kv.set_metadata(path, delete_version_after=timedelta(0), custom_metadata={"managed_by": None})
    write(vault, token)  # this write finds our mark missing
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert (metadata.delete_version_after, metadata.custom_metadata) == (2 * HOUR, OURS)
    assert vault.tokens.read(NAME).kept_for == 2 * HOUR


def test_settings_grow_when_tokens_live_longer(vault: VaultPort, path: str) -> None:
    write(vault, app_jwt(vault.now(), timedelta(minutes=10)))
    write(vault, app_jwt(vault.now(), 4 * HOUR))
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert metadata.delete_version_after == 8 * HOUR


def test_others_keys_of_custom_metadata_are_kept(vault: VaultPort, path: str, token: AppJWT) -> None:
    # FIELD 22: a POST would replace the whole map
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    write(vault, token)
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert metadata.custom_metadata == {"owner": "the chat team", **OURS}


def test_at_most_five_versions_are_kept(vault: VaultPort, path: str, token: AppJWT) -> None:
    assert [write(vault, token) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert metadata.versions == (3, 4, 5, 6, 7)


def test_a_token_is_written_again_where_somebody_shortened_how_long_it_is_kept(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    write(vault, token)
    vault.kv.set_metadata(path, delete_version_after=timedelta(minutes=10))
    assert write(vault, token) == 3
    assert vault.tokens.read(NAME).kept_for == 2 * HOUR


def test_a_stranger_who_is_faster_at_a_new_path_keeps_it_as_it_was(vault: VaultPort, path: str, token: AppJWT) -> None:
    nothing = vault.tokens.read(NAME)
    vault.kv.put(path, {"password": "theirs"})
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    with pytest.raises(ForeignSecretError):
        vault.tokens.write(NAME, token, {}, nothing)
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert (metadata.versions, metadata.max_versions, metadata.delete_version_after) == ((1,), 0, timedelta(0))
    assert metadata.custom_metadata == {"owner": "the chat team"}
    with pytest.raises(ForeignSecretError):
        vault.tokens.read(NAME)


def test_a_stranger_who_made_a_path_anew_after_ours_was_deleted_keeps_it(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    for _ in range(2):  # else theirs has the number of ours, and no CAS could tell them apart
        write(vault, token)
    vault.kv.delete(path)
    ours = vault.tokens.read(NAME)
    vault.kv.remove(path)
    vault.kv.put(path, {"password": "theirs"})
    with pytest.raises(ForeignSecretError):
        vault.tokens.write(NAME, token, {}, ours)
    with pytest.raises(ForeignSecretError):
        vault.tokens.read(NAME)


# Tokens: what their paths tell of the account


NEWS: Final = {"state": "failing", "last_error": "sentinel: va answers 401", "failing_since": "2026-01-01T00:00:00Z"}


def test_what_is_told_of_an_account_without_a_token_is_read_again(vault: VaultPort, path: str) -> None:
    vault.tokens.note(NAME, NEWS | {"gone": None})
    stored = vault.tokens.read(NAME)
    assert (stored.version, stored.raw, stored.notes, stored.marked) == (0, None, NEWS, False)
    vault.kv.put(path, {"password": "theirs"})
    with pytest.raises(ForeignSecretError):  # to tell something there does not make the path ours
        vault.tokens.read(NAME)


def test_what_is_told_stands_beside_our_mark_and_others_keys_and_can_be_taken_back(
    vault: VaultPort, path: str, token: AppJWT
) -> None:
    vault.tokens.note(NAME, NEWS)
    write(vault, token)
    vault.kv.set_metadata(path, custom_metadata={"owner": "the chat team"})
    assert vault.tokens.read(NAME).notes == {**NEWS, **OURS, "owner": "the chat team"}
    vault.tokens.note(NAME, {"state": "ok", "last_error": None, "failing_since": None})
    assert vault.tokens.read(NAME).notes == {"state": "ok", **OURS, "owner": "the chat team"}
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert (metadata.max_versions, metadata.delete_version_after) == (5, 2 * HOUR)


def test_settings_can_be_restored_without_a_write(vault: VaultPort, path: str, token: AppJWT) -> None:
    write(vault, token)
    vault.kv.set_metadata(path, max_versions=0, custom_metadata={"managed_by": None})
    vault.tokens.settle(NAME, token.lifetime, timedelta())
    stored, metadata = vault.tokens.read(NAME), vault.kv.metadata(path)
    assert metadata is not None
    assert (stored.marked, stored.version, metadata.max_versions) == (True, 1, 5)


def test_a_token_that_lives_less_does_not_shorten_what_the_next_is_kept_for(vault: VaultPort, path: str) -> None:
    write(vault, app_jwt(vault.now(), life=4 * HOUR))
    vault.tokens.settle(NAME, HOUR, vault.tokens.read(NAME).kept_for)
    metadata = vault.kv.metadata(path)
    assert metadata is not None
    assert metadata.delete_version_after == 8 * HOUR


# What goes wrong


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


def test_a_policy_that_was_taken_away_is_a_lasting_failure_and_no_removal(vault: VaultPort, token: AppJWT) -> None:
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
            assert (caught.value.kind, caught.value.status) == (Kind.LASTING, 403)
            assert not isinstance(caught.value, AccountGoneError)
    assert vault.accounts.read(NAME).name == NAME


def test_a_write_whose_answer_got_lost_is_there_and_is_no_cas_mismatch(vault: VaultPort, token: AppJWT) -> None:
    write(vault, token)
    stored, newer = vault.tokens.read(NAME), app_jwt(vault.now() + HOUR)
    with vault.losing_answers(), pytest.raises(RefreshError) as caught:
        vault.tokens.write(NAME, newer, {}, stored)
    assert (caught.value.kind, caught.value.status) == (Kind.TRANSIENT, None)
    assert not isinstance(caught.value, CasMismatchError)
    after = vault.tokens.read(NAME)
    assert (after.version, after.raw) == (2, newer.raw)
