"""Hostile servers achieve nothing: no leak, no request to another host, no delay of other accounts."""

import re

import pytest

from tests.integration.hostile import DEADLINE, SLOW, Report, among_hostile_servers

GRACE = 6
"""Seconds on top of the deadline that a loaded machine may take to notice."""
TOUCHED = re.compile(
    r"auth/approle/login|auth/token/(lookup|renew|revoke)-self|sys/internal/ui/mounts/secret"
    r"|secret/(data|metadata)/liveperson/(accounts|tokens)/.*"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return among_hostile_servers(tmp_path_factory.mktemp("hostile") / "world")


def test_nothing_leaks_in_any_form(report: Report) -> None:
    assert report.leaks == []


def test_no_request_leaves_the_allow_list(report: Report) -> None:
    assert report.outside == 0


def test_no_answer_holds_a_slot_beyond_the_deadline(report: Report) -> None:
    assert max(report.held_seconds.values()) < DEADLINE + GRACE, report.held_seconds
    assert min(report.held_seconds[name] for name in ("accepts and says nothing", "drips the body")) > DEADLINE * 0.9
    assert report.held_seconds.keys() >= SLOW.keys()


def test_the_daemon_lives_and_the_accounts_beside_them_are_served(report: Report) -> None:
    assert report.alive
    assert report.served >= 9
    assert report.min_remaining > 0.1  # 0.4 on a machine of one's own


def test_in_vault_it_touched_its_own_paths_and_no_others(report: Report) -> None:
    assert report.paths
    assert not [path for path in report.paths if not TOUCHED.fullmatch(path)]
