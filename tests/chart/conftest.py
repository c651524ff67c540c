"""The real Helm engine; on machines that its wheel is not made for, these tests do not run."""

import pytest

collect_ignore = []
try:
    import helm_python
except ImportError:
    collect_ignore = ["test_chart.py", "test_forms.py", "test_rendered.py", "test_values.py"]
else:
    del helm_python


def pytest_report_header() -> str | None:
    return "the chart's tests do NOT RUN: there is no helm-python-sdk for this machine" if collect_ignore else None


@pytest.fixture(autouse=True)
def _nothing_is_printed_by_helm(capfd: pytest.CaptureFixture[str]) -> None:
    """Fail if helm prints: it writes warnings past Python."""
    del capfd
