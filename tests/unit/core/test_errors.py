"""The stage, kind and remedy of each failure."""

from datetime import timedelta

from worker.core.errors import (
    CasMismatchError,
    InternalError,
    InvalidAccountError,
    Kind,
    RefreshError,
    Stage,
    UnmanagedSecretError,
)


def test_each_failure_says_at_which_stage_it_came_and_whether_it_lasts() -> None:
    errors: list[RefreshError] = [
        InvalidAccountError("client_id: missing"),
        UnmanagedSecretError("not ours"),
        CasMismatchError("written since"),
        InternalError(KeyError("x")),
    ]
    assert [(error.stage, error.kind, str(error)) for error in errors] == [
        (Stage.CREDENTIALS, Kind.PERMANENT, "client_id: missing"),
        (Stage.VAULT, Kind.PERMANENT, "not ours"),
        (Stage.VAULT, Kind.TRANSIENT, "written since"),
        (Stage.INTERNAL, Kind.TRANSIENT, "internal error: KeyError"),
    ]


def test_what_the_other_side_said_is_kept_and_what_to_do_is_not_known_yet() -> None:
    pause = timedelta(seconds=7)
    error = RefreshError(Stage.SENTINEL, Kind.TRANSIENT, "text", status=429, retry_after=pause, check="exp")
    assert (error.status, error.retry_after, error.check) == (429, pause, "exp")
    assert (error.remedy, error.host) == (None, None)


def test_how_a_unmanaged_secret_is_handed_over_is_told_in_words_and_as_the_remedy() -> None:
    error = UnmanagedSecretError("not ours", "vault kv metadata patch x")
    assert (str(error), error.remedy) == (
        "not ours; to hand it over: vault kv metadata patch x",
        "vault kv metadata patch x",
    )
    assert error.detail == "not ours", "what has a column for the remedy shows it once"
    assert UnmanagedSecretError("not ours").remedy is None


def test_of_a_bug_only_its_type_is_told_for_its_words_may_hold_a_secret() -> None:
    bug = ValueError("s3cr3t")
    error = InternalError(bug)
    assert "s3cr3t" not in str(error)
    assert error.__cause__ is bug
