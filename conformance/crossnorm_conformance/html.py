"""The report for a browser."""

from .report import Report
from .trend import Trend


def html(report: Report, trend: Trend | None) -> str:
    """One self-contained HTML document."""
    raise NotImplementedError
