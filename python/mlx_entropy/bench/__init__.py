"""Measurements against the stock peer, as text and as JSON.

Each module has one function that measures and returns a report: a dict of
JSON types with "benchmark", "machine", what was measured, and "results".
"""
