"""The short form: few inputs for each check, the same each time, and every input that ever failed."""

from collections.abc import Iterator

import pytest

from tests.fuzz import target_account, target_answers, target_domains, target_redactor, target_settings, target_token
from tests.fuzz.engine import Target, fuzz, kept

TARGETS = {
    each.TARGET.name: each.TARGET
    for each in (target_token, target_account, target_domains, target_answers, target_settings, target_redactor)
}
_EXAMPLES = 10


def _cases() -> Iterator[tuple[str, str]]:
    yield from ((target.name, case) for target in TARGETS.values() for case in target.cases)


@pytest.mark.parametrize(("target", "case"), [*_cases()])
def test_every_input_comes_to_what_it_should(target: str, case: str) -> None:
    assert fuzz(TARGETS[target], case, _EXAMPLES) >= _EXAMPLES // 2


def test_what_once_failed_does_not_fail_again() -> None:
    for entry in kept():
        target: Target = TARGETS[entry["target"]]
        assert target.run(entry["input"]) == entry["case"], entry
