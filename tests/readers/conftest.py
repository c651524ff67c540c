"""One Vault for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.integration.processes import scene
from tests.readers.stand import NAMESPACE, Line, Vault


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    with scene(tmp_path_factory.mktemp("readers") / "world") as world, Line(world.openbao) as line:
        with world.openbao.within(NAMESPACE.partition("/")[0]):
            pass  # which makes the parent
        with world.openbao.within(NAMESPACE):
            world.openbao.mount_kv("secret")
        yield Vault(world, line)
