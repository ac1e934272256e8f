"""Packages that libraries under test import and do not need here, replaced by empty ones.

timm does not import without torchvision, whose builds bring gigabytes of CUDA libraries; OpenMMLab
imports OpenCV, matplotlib and yapf, and everything that it has. None of it touches a backbone.
"""

import enum
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class Empty(types.ModuleType):
    """A module in which every name is an empty class; as interpolation modes torchvision's."""

    __path__ = []
    __version__ = "0"
    MODES = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")
    InterpolationMode = enum.Enum("Mode", {m.replace("-", "_").upper(): m for m in MODES})

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder of the packages `names` and everything below them."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec):
        return Empty(spec.name)

    def exec_module(self, module):
        pass


def replace(*names):
    """Let `import NAME` find an empty package where there is no real one."""
    absent = {n for n in names if n not in sys.modules and importlib.util.find_spec(n) is None}
    if absent:
        sys.meta_path.append(Finder(absent))


def bare(name):
    """A package whose modules can be imported and whose own __init__ does not run."""
    root, *rest = name.split(".")
    if root in sys.modules:
        place = sys.modules[root].__path__[0]
    else:
        place = importlib.util.find_spec(root).submodule_search_locations[0]
    module = types.ModuleType(name)
    module.__path__ = ["/".join([place, *rest])]
    sys.modules[name] = module


def alone(name):
    """A module without its package, whose own __init__ does not run; it takes no place in any."""
    root, *parts = name.split(".")
    folder = importlib.util.find_spec(root).submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(
        f"alone.{name}", "/".join([folder, *parts]) + ".py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def openmmlab():
    """The backbones of mmpretrain and mmseg, beside mmcv-lite."""
    replace("torchvision", "cv2", "matplotlib", "yapf")
    # mmpretrain wants the package, which the standard library has taken in
    sys.modules.setdefault("importlib_metadata", importlib.import_module("importlib.metadata"))
    for name in ("", ".models", ".models.backbones"):
        bare(f"mmpretrain{name}")
    for name in ("", ".utils", ".models", ".models.backbones", ".models.utils"):
        bare(f"mmseg{name}")
    utils = sys.modules["mmseg.models.utils"]
    utils.PatchEmbed = importlib.import_module("mmseg.models.utils.embed").PatchEmbed
    utils.resize = importlib.import_module("mmseg.models.utils.wrappers").resize
