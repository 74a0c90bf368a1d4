"""Runs told to other tools, TensorBoard and MLflow, from their records.

``runs.py`` says what of a run is told, to any tool; each tool has a file, which alone imports its library.
"""
