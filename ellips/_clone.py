"""In a clone, gives the Lightning packages beside the library the names that they have in the wheel.

The wheel has them as ``ellips.lightning_modules``, ``ellips.datamodules``, ``ellips.callbacks`` and
``ellips.commands``; in a clone they stand at the top level. There ``ellips.callbacks`` is found in the clone's folder,
and ``callbacks``, where that names the same folder, is the same module, so that no class exists twice. Another
project's own ``callbacks`` is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGES = ("lightning_modules", "datamodules", "callbacks", "commands")
LIBRARY = Path(__file__).parent
CLONE = LIBRARY.parent


class _CloneFinder(MetaPathFinder):
    """Finds ``ellips.<package>`` beside the library, and lets ``<package>`` and what is in it be the same modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for the packages' two names; see :class:`importlib.abc.MetaPathFinder`."""
        first, _, rest = fullname.partition(".")
        if first == "ellips" and rest in PACKAGES:
            folder = CLONE / rest
            return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])
        if first in PACKAGES and _lies_in_clone(PathFinder.find_spec(fullname, path)):
            return ModuleSpec(fullname, _SameModule())
        return None


class _SameModule(Loader):
    """Hands out the module ``ellips.<name>`` under the name without ``ellips``."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the one module that there is; what importing is about to write over is kept for later."""
        module = import_module(f"ellips.{spec.name}")
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module back what it says of itself; it was run already."""
        module.__spec__ = self.spec


def _lies_in_clone(spec: ModuleSpec | None) -> bool:
    return spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(CLONE)


def install() -> None:
    """Start answering, if this is a clone."""
    if (CLONE / PACKAGES[0] / "__init__.py").is_file() and not (LIBRARY / PACKAGES[0]).exists():
        sys.meta_path.insert(0, _CloneFinder())
