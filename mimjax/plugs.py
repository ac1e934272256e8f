"""Classes that a config names: by a shipped class's name, "module:Class" or "my_file.py:Class".

A plug is a class that fills a field of a config: a network, a masking, a target, a loss, a
schedule, an optimizer's rule, a data source, an evaluator, a board. Its base class sets PLUGGABLE,
and HOME to the modules of the shipped classes; there is no registry. The fields of its dataclass
are the schema of its section, which `schema` reads and writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from typing import Any

from mimjax.errors import ConfigError, UserCodeError

# Names of classes in config files of older versions -> their names today.
MOVED = {
    "mimjax.models.conv_stages:ConvViT": "mimjax.models.conv_vit:ConvViT",
    "mimjax.models.discrete_vae:DVAEDecoder": "mimjax.models.dvae:DVAEDecoder",
    "mimjax.models.discrete_vae:DVAEEncoder": "mimjax.models.dvae:DVAEEncoder",
    "mimjax.targets.patches:Pixels": "mimjax.targets.pixels:Pixels",
}
PACKAGE = os.path.dirname(os.path.abspath(__file__))
ROOTS = (PACKAGE, os.path.dirname(PACKAGE))  # of the folder configs: of a wheel, of a checkout
_FILES: dict[str, Any] = {}  # absolute path -> module


def find_class(path: Any, key: str) -> Any:
    """Return the class that "mimjax.methods.mae:MAE" or "my_file.py:Mine" names.

    Args:
      path: module or file, a colon, and the class; names of older versions are translated.
      key: names the setting in errors.

    Raises:
      ConfigError: there is no such class.
      UserCodeError: the module exists and fails when it is imported.
    """
    module, _, name = str(path).rpartition(":")
    moved = MOVED.get(str(path))
    if moved:
        module, _, name = moved.partition(":")
    try:
        return getattr(import_file(module) if module.endswith(".py") else _module(module), name)
    except (ModuleNotFoundError, FileNotFoundError, AttributeError, ValueError):
        raise ConfigError(
            f"{key}: {path!r} not found; allowed: 'module:Class' or 'file.py:Class', like "
            "'mimjax.methods.mae:MAE'"
        ) from None


def _module(name: str) -> Any:
    """Import a module; one that does not exist and one that fails raise different errors."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise  # this module does not exist; otherwise it imports one that does not
        raise UserCodeError(name) from error
    except (ValueError, TypeError):
        raise ValueError(name) from None  # the text is no name of a module
    except Exception as error:
        raise UserCodeError(name) from error


def import_file(path: str) -> Any:
    """Import a file as a module, once; `sys.modules` holds it, so its classes can be pickled."""
    path = find_file(path)
    if path not in _FILES:
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        name = f"mimjax_user_{hashlib.sha256(path.encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserCodeError(path) from error
        _FILES[path] = module
    return _FILES[path]


def find_file(path: str) -> str:
    """Return the absolute path of a file, which need not exist.

    Classes of the configs that come with mimjax are named "configs/recipes/NAME.py:Class", from
    whichever folder a program is started.
    """
    found = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(found) and path.startswith("configs/"):
        shipped_files = (os.path.join(folder, path) for folder in ROOTS)
        found = next((file for file in shipped_files if os.path.isfile(file)), found)
    return found


def user_files() -> tuple[str, ...]:
    """Return the absolute paths of the users' files that this process imported."""
    return tuple(_FILES)


def import_files(paths: tuple[str, ...]) -> None:
    """Import users' files, so that objects of their classes can be unpickled in this process."""
    for path in paths:
        import_file(path)


def class_path(cls: type) -> str:
    """Return the name by which `find_class` finds a class; a user's file has its absolute path."""
    file = file_of(cls)
    return f"{file or cls.__module__}:{cls.__qualname__}"


def file_of(cls: type) -> str | None:
    """Return the absolute path of the user's file that defines a class; None for a module's."""
    return next((p for p, m in _FILES.items() if m.__name__ == cls.__module__), None)


def digest_of(cls: type) -> str | None:
    """Return the sha256 of the user's file that defines a class, 16 digits; None for a module's."""
    file = file_of(cls)
    if file is None:
        return None
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def pluggable(thing: Any) -> bool:
    """Return whether a section of `thing`, a class or an instance, names its class."""
    return getattr(thing, "PLUGGABLE", False)


def base_of(cls: type) -> type:
    """Return the base class of the plugs of which `cls` is one.

    It is the last pluggable class that `cls` derives from; of a class that is no plug, as a network
    that a published file fixes, the last but `object`.
    """
    return next((c for c in reversed(cls.__mro__) if pluggable(c)), cls.__mro__[-2])


def abstract(cls: type) -> bool:
    """Return whether a class only tells what its subclasses have in common.

    A base class of plugs does, unless it sets ABSTRACT to False.
    """
    return getattr(cls, "ABSTRACT", cls is base_of(cls))


def plain(name: str) -> str:
    """Return a short name for comparison: without case, underscores and hyphens."""
    return name.lower().replace("_", "").replace("-", "")


def shipped(base: type) -> dict[str, type]:
    """Return the shipped classes that may fill a field of class `base`, by class name."""
    out = {}
    for home in getattr(base, "HOME", (base.__module__,)):
        for name, cls in vars(importlib.import_module(home)).items():
            if not (inspect.isclass(cls) and issubclass(cls, base)) or name.startswith("_"):
                continue
            if cls.__module__ == home and not abstract(cls):
                out[name] = cls
    return out


def find_plug(base: type, name: Any, key: str) -> type:
    """Return the class that may fill a field of class `base`.

    Args:
      name: name of a shipped class, "module:Class" or "file.py:Class".
      key: names the setting in errors.

    Raises:
      ConfigError: there is no class of this name, it is no `base`, it is named like another shipped
        class, or it has a field without default.
      UserCodeError: the user's module fails when it is imported.
    """
    known = shipped(base)
    words = f"{', '.join(known)}, 'module:Class' or 'file.py:Class'" if known else "'module:Class'"
    if ":" not in str(name):
        for short, cls in known.items():
            if plain(short) == plain(str(name)):
                return cls
        raise ConfigError(f"{key}: {name!r}; allowed: {words}")
    cls = find_class(name, key)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise ConfigError(f"{key}: {name!r} is no {base.__name__}; allowed: {words}")
    if cls.__name__ in known and known[cls.__name__] is not cls:
        raise ConfigError(
            f"{key}: {name!r} has the name of a class of mimjax; allowed: another name"
        )
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        missing = dataclasses.MISSING
        if field.init and field.default is missing and field.default_factory is missing:
            raise ConfigError(
                f"{key}: field {field.name!r} of {name!r} has no default; allowed: fields with one"
            )
    return cls
