"""Progress bars: text in a terminal; in a notebook a widget, or text where it has no widgets."""

import warnings

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # that ipywidgets is not installed: text does, too
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
