"""Lightning modules: thin shells around :mod:`ellips`."""

from .gen_ellips import GenEllips
from .optimization import Optimization

__all__ = ["GenEllips", "Optimization"]
