"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata


def version_of(package: str) -> str:
    """The version of an installed package; "unknown version" of one that was only put into the path."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown version"
