"""A real Prometheus sees a real daemon in trouble: an alert fires, and clears. `make alerts` takes all of them."""

from collections.abc import Iterator

import pytest

from tests.alerts.stand import FAULTS, WITHOUT_LIST, Stand, dashboard, policy, watched
from tests.integration.processes import eventually

pytestmark = [pytest.mark.tool("prometheus"), pytest.mark.tool("prometheus-alertmanager")]

SHORT = ("a token deleted by hand", "a field of an account's secret emptied")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with watched(tmp_path_factory.mktemp("alerts") / "stand") as made:
        yield made


@pytest.mark.parametrize("fault", SHORT)
def test_an_alert_fires_and_clears(fault: str, stand: Stand) -> None:
    alert, switched_on = FAULTS[fault]
    with switched_on(stand):
        stand.prometheus.until(alert, fires=True)
    stand.prometheus.until(alert, fires=False)


def test_alertmanager_notifies_of_the_cause_and_not_of_what_follows_from_it(stand: Stand) -> None:
    alerts = stand.alertmanager.inhibited
    with policy(stand.world, WITHOUT_LIST):
        eventually(lambda: {"AppJWTVaultUnusable", "AppJWTSyncStale"} <= alerts().keys())
        eventually(lambda: alerts()["AppJWTSyncStale"])
        assert not alerts()["AppJWTVaultUnusable"]
    stand.prometheus.until("AppJWTVaultUnusable", fires=False)


@pytest.mark.parametrize("expr", dashboard())
def test_a_query_of_the_dashboard_is_one_and_finds_something(expr: str, stand: Stand) -> None:
    found = stand.prometheus.query(expr)
    if "appjwt_account_state" not in expr:  # all is well, so that one may find nothing
        assert found or eventually(lambda: stand.prometheus.query(expr))  # rates want two scrapes
