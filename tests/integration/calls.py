"""Ways to call the installed command that several tests share."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.integration.processes import Done, Scene


def side_by_side(*calls: Callable[[], Done]) -> list[Done]:
    """What became of each, in the order given."""
    with ThreadPoolExecutor(4) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


def by_token(scene: Scene, *policies: str, **changes: str) -> dict[str, str | None]:
    """Changes to the settings, for a login by a token with these policies."""
    token = scene.openbao.token(policies)
    scene.secrets.append(token)
    names = ("AUTH_METHOD", "ROLE_ID", "SECRET_ID_FILE")
    return {**{f"APPJWT_VAULT_{name}": None for name in names}, "APPJWT_VAULT_TOKEN": token, **changes}
