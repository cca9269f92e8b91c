"""The version of the installed package."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """E.g. "0.1.0"; "0+unknown" in a checkout that is not installed."""
    try:
        return metadata.version("mlx-entropy")
    except metadata.PackageNotFoundError:
        return "0+unknown"
