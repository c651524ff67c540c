"""Checks of the rules that conftest sets for every unit test."""

import pytest
from pytest_socket import SocketBlockedError

from worker import net


def test_a_unit_test_cannot_reach_anything_not_even_through_our_own_transport() -> None:
    with pytest.warns(UserWarning, match="A test tried to use socket"), pytest.raises(SocketBlockedError):
        net.session(user_agent="any").get("http://127.0.0.1:9", timeout=5)
