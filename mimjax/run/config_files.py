"""From the name of a config to the config: where its file is, and what it returns.

A config file is plain Python that is loaded by its path and belongs to no package. Its function
`get_config(arg)` returns a ConfigDict. It imports from `mimjax` alone; a config that builds on
another calls `load("mae:size=l")`.
"""

from __future__ import annotations

import inspect
import os
import pathlib
import re
import traceback
from types import ModuleType

import ml_collections
from ml_collections import ConfigDict

from mimjax import plugs
from mimjax.errors import ConfigError, UserCodeError
from mimjax.schema import Config

PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel has the configs inside the package, a checkout beside it. Beside an installed package lie
# other packages: a `configs` among them is not ours.
FOLDERS = (PACKAGE / "configs", PACKAGE.parent / "configs")


def shipped() -> dict[str, str]:
    """Return the paths of the configs that come with mimjax, by name ("recipes/one_gpu")."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[0])
    return {
        path.relative_to(folder).with_suffix("").as_posix(): str(path)
        for path in sorted(folder.rglob("*.py"))
    }


def find(name: str) -> str:
    """Return the path of a config file.

    Args:
      name: the path of a file; else a shipped config: "mae", "mae.py", "configs/mae.py",
        "recipes/one_gpu". A folder of that name changes nothing.

    Raises:
      ConfigError: there is no such file and no shipped config of that name.
    """
    path = os.path.expanduser(name)
    if os.path.isfile(path) and path.endswith(".py"):
        return path
    known = shipped()
    short = name.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    if short not in known:
        problem = "is a folder" if os.path.isdir(path) else "not found"
        problem = "is no Python file" if os.path.isfile(path) else problem
        raise ConfigError(f"config {name!r}: {problem}; allowed: FILE.py, {', '.join(known)}")
    return known[short]


def import_config(name: str) -> ModuleType:
    """Import the config file that `find` returns for this name, once per process.

    Raises:
      ConfigError: there is none, it has a syntax error or no `get_config`.
      UserCodeError: another error that its code raises while it is imported.
    """
    path = find(name)
    try:
        imported = plugs.import_file(path)
    except UserCodeError as error:
        if line := _explain(path, error.__cause__):
            raise ConfigError(line) from None
        raise
    if not callable(getattr(imported, "get_config", None)):
        raise ConfigError(
            f"{path}, line 1: the file has no function `get_config`; allowed: one that returns a "
            "ConfigDict, like that of configs/mae.py"
        )
    return imported


def load(text: str) -> Config:
    """Return the locked config that "mae:size=l" or "my_config.py" names.

    Args:
      text: NAME_OR_PATH[:ARGUMENTS], see `find` and `arguments`.

    Raises:
      ConfigError: there is no such config, or it refuses its arguments or itself.
      UserCodeError: another error that the file's code raises.
    """
    name, _, arg = text.partition(":")
    get_config, path = import_config(name).get_config, find(name)
    if arg and not inspect.signature(get_config).parameters:
        raise ConfigError(f"config argument {arg!r}: {path} takes none; allowed: none")
    try:
        c = get_config(arg or None) if inspect.signature(get_config).parameters else get_config()
    except (ConfigError, UserCodeError):
        raise
    except Exception as error:
        if line := _explain(path, error):
            raise ConfigError(line) from None
        raise UserCodeError(path) from error
    if not isinstance(c, ConfigDict):
        code = getattr(get_config, "__code__", None)
        place = f"{path}, line {code.co_firstlineno if code else 1}"
        raise ConfigError(
            f"{place}: `get_config` returns {type(c).__name__}; allowed: a ConfigDict"
        )
    return c.lock()


def _explain(path: str, error: BaseException | None) -> str:
    """Return one line for an error of Python's parser or of a ConfigDict; "" for any other error.

    The line names the innermost line of the config file that the error went through.
    """
    if isinstance(error, ConfigError):  # of a config that this one builds on
        return str(error)
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}; allowed: Python code"
    frames = traceback.extract_tb(error.__traceback__) if error else []
    if error is None or os.path.dirname(ml_collections.__file__) not in frames[-1].filename:
        return ""
    lines = [f.lineno for f in frames if os.path.abspath(path) == f.filename]
    place = f"{path}, line {lines[-1]}" if lines else path
    return f"{place}: {_refusal(error)}"


def _refusal(error: BaseException) -> str:
    """Return what a ConfigDict refuses, in one line."""
    while error.args and isinstance(error.args[0], Exception):  # an AttributeError of a KeyError
        error = error.args[0]
    text = str(error.args[0] if error.args else error)
    if re.search(r"\bteacher\b", text):  # the section of older versions
        path = "`path` of the target that reads it, as c.method.code_target.path"
        return f"config.teacher: unknown; allowed: {path}"
    if match := re.match(r'Key "(.+?)" does not exist and cannot be added since', text):
        return f"key {match[1]!r} is added to a locked config; allowed: new keys before `lock()`"
    text = " ".join(text.split())[:300]
    return f"no key {text}" if isinstance(error, KeyError) else text
