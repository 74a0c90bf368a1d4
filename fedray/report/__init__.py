"""What a set of runs says: ``comparison`` analyses, ``html`` writes the page.

Reads records only. Must not import torch or ray.
"""

from fedray.report.html import write_report

__all__ = ["write_report"]
