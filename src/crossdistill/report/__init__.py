"""A run folder becomes tables, figures and one self-contained HTML page; panels are functions any room can add."""

from crossdistill.report.page import write_report
from crossdistill.report.panel import PANELS, Panel, panel
from crossdistill.report.run import Run, read_run
from crossdistill.report.table import html_table, markdown_table, rich_table

__all__ = ["PANELS", "Panel", "Run", "html_table", "markdown_table", "panel", "read_run", "rich_table", "write_report"]
