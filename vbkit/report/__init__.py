"""A results folder as one page of HTML that needs nothing else: no network, no server, no video.

Jinja2 writes the page and what a reader sees first; the details of a video are embedded as JSON
and shown when they are asked for, so that a page of 1,000 videos opens at once. Vega-Lite draws the
charts. Everything that comes from a video or a transcript reaches the page as text: through
Jinja2's autoescape, or as JSON that the page's script puts into text nodes. A content security
policy lets only the page's own two scripts run, by their hashes.

Importing this package imports neither pandas nor Jinja2.
"""

from __future__ import annotations

from vbkit.report.page import FILE_NAME, Report, write_report

__all__ = ["FILE_NAME", "Report", "write_report"]
