"""What a set of runs says: ``comparison`` analyses, ``tables`` prints and saves, ``html`` writes the page.

Reads records only. Must not import torch or ray.
"""
