"""One small file per training loss. Every module of this package is imported, so a new file registers itself."""

import importlib
import pkgutil

from fewshot.training.losses.base import LOSSES, Loss, NetworkLoss, create_loss, list_losses, mean_of, parse_losses
from fewshot.training.types import Moment

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["LOSSES", "Loss", "Moment", "NetworkLoss", "create_loss", "list_losses", "mean_of", "parse_losses"]
