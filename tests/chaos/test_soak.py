"""The soak's own code, for a minute."""

from concurrent.futures import Future

from tests.chaos.soak import Soak, check_flat, report


def test_a_minute_of_faults_costs_no_reader_a_token(soaked: Future[Soak]) -> None:
    done = soaked.result()
    assert not done.problems, "\n".join(done.problems)
    assert len(done.faults) > 1
    assert done.refreshed > done.accounts
    assert done.book.reads > 10 * done.accounts
    assert "| memory MiB |" in report(done)


def test_what_grows_is_found() -> None:
    done = Soak(1, 1, samples=[dict.fromkeys(("memory MiB", "threads", "sockets", "files"), n) for n in range(100)])
    check_flat(done)
    assert len(done.problems) == 4
