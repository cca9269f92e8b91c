"""Measurements from a checkout: products, codecs, whole models, peers.

Each module has one function that measures and returns a report: a dict of
JSON types with "benchmark", "machine", what was measured, and "results".
`python -m benchmarks --help` lists the commands; `pip install .[bench]`
installs what they need. What measures a user's own model, loading and
generating, is in the package: `mlx_entropy.bench`.
"""
