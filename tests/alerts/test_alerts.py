"""A real Prometheus sees a real daemon in trouble: an alert fires, and clears. `make alerts` takes all of them."""

from collections.abc import Iterator

import pytest

from tests.alerts.stand import FAULTS, Prometheus, dashboard, watched
from tests.integration.processes import Daemon, Scene, eventually

pytestmark = pytest.mark.tool("prometheus")

SHORT = ("a token deleted by hand", "a field of an account's secret emptied")

Stand = tuple[Scene, Daemon, Prometheus]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with watched(tmp_path_factory.mktemp("alerts") / "stand") as made:
        yield made


@pytest.mark.parametrize("fault", SHORT)
def test_an_alert_fires_and_clears(fault: str, stand: Stand) -> None:
    world, daemon, prometheus = stand
    alert, switched_on = FAULTS[fault]
    with switched_on(world, daemon):
        prometheus.until(alert, fires=True)
    prometheus.until(alert, fires=False)


@pytest.mark.parametrize("expr", dashboard())
def test_a_query_of_the_dashboard_is_one_and_finds_something(expr: str, stand: Stand) -> None:
    found = stand[2].query(expr)
    if "appjwt_account_state" not in expr:  # all is well, so that one may find nothing
        assert found or eventually(lambda: stand[2].query(expr))  # rates want two scrapes
