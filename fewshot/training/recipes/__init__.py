"""Training recipes of papers, one file each; every module of this package is imported, so a new file registers itself."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
