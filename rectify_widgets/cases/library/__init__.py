"""The cases that ship, one file a kind.  Every file here is imported and registers its cases.

Example:
    >>> rw.cases.load("spurious-mild").behaviour
    'spurious'
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
