"""Says what to install where packages that training needs are missing; standard library only."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["missing_packages_problem"]


def missing_packages_problem(*names: str) -> str | None:
    """Returns one line for the user if one of the packages cannot be found, else None.

    Looks without importing: torch takes seconds.
    """
    missing = [name for name in names if find_spec(name) is None]
    if not missing:
        return None
    return (
        f"deepy.py: this Python lacks {', '.join(missing)}, which training needs; install the "
        "extra: pip install 'odm-neox[train]', or pip install '.[train]' in the folder of the "
        "sources"
    )
