"""Operations of Vault, as the metrics name them."""

from enum import StrEnum


class Operation(StrEnum):
    LOGIN = "login"
    RENEW = "renew"
    LIST = "list"
    READ_ACCOUNT = "read_account"
    READ_TOKEN = "read_token"  # noqa: S105 - a name
    WRITE_TOKEN = "write_token"  # noqa: S105 - a name
    WRITE_METADATA = "write_metadata"
