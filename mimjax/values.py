"""The values that a setting may have: its annotation declares them, and `fit` checks a value.

    pos_embed: Literal["learned", "none"]     one of these
    drop_path: Rate                           Annotated[float, Range(0, 1, high_open=True)]
    heads: Count | None = None                None = not set
    size: Size | None = None                  (height, width); a plain number is a square

Rules between several settings stand in the classes and in `errors`; `schema` fits whole sections.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
import typing
from typing import Annotated, Any, Literal, Union

import flax.linen as nn

from mimjax.errors import ConfigError
from mimjax.plugs import pluggable

CLOCK = {"clock"}  # of a task; the run sets it
# of a module; set by flax, and by who computes
FLAX = {"parent", "name", "dtype", "stream", "attention_form"}


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds.

    Attributes:
      low, high: the bounds; an infinite one is no bound.
      low_open, high_open: whether the bound itself is excluded.
      note: hint that errors add, as about the unit.
    """

    low: float = 0
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and abs(value) <= sys.float_info.max  # excludes NaN and infinity

    def __str__(self) -> str:
        bounded = self.low > -math.inf, self.high < math.inf
        low = f"above {self.low:g}" if self.low_open else f"{self.low:g}"
        high = f"below {self.high:g}" if self.high_open else f"{self.high:.10g}"
        if all(bounded):
            text = f"{low} and {high}" if self.low_open and self.high_open else f"{low} to {high}"
            text = f"{low} up to {high}" if self.low_open != self.high_open else text
        elif bounded[0]:
            text = low if self.low_open else f"{low} or more"
        else:
            text = high if self.high_open else f"{high} or less"
        text = text if any(bounded) else "any finite number"
        return f"{text} ({self.note})" if self.note else text


ANY = Range(-math.inf)


@dataclasses.dataclass(frozen=True)
class Text:
    """Mark of a string with any content.

    Attributes:
      meaning: what the string stands for, for errors.
    """

    meaning: str


@dataclasses.dataclass(frozen=True)
class Length:
    """Mark of a tuple.

    Attributes:
      minimum: smallest number of elements.
    """

    minimum: int


class Square:
    """Mark of a pair for which a plain number n may stand; it means (n, n)."""


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Index = Annotated[int, ANY]  # of a block, negative from the end; see errors.block_index
Number = Annotated[float, ANY]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, high_open=True)]  # of dropping, or of an average's decay
Some = Annotated[float, Range(0, 1, low_open=True)]  # a share above 0
Size = Annotated[tuple[Count, Count], Square()]  # (height, width)
_PIXELS = "pixel values are scaled to 0 to 1: divide by 255"
Mean = tuple[Annotated[float, Range(0, 1, note=_PIXELS)], ...]
Std = tuple[Annotated[float, Range(0, 1, low_open=True, note=_PIXELS)], ...]
Rule = tuple[Annotated[str, Text("a regular expression")], NonNegative]


# ------------------------------------------------------------------ annotations
@functools.cache
def fields(cls: type) -> dict[str, Any]:
    """Return the settings of a dataclass or linen module, and the annotation of each.

    Fields that a method derives (`DERIVED`), or that flax or the run sets, are no settings.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    hidden = CLOCK | set(getattr(cls, "DERIVED", ()))
    hidden |= FLAX if issubclass(cls, nn.Module) else set()
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in hidden]
    return {name: hints[name] for name in names}


def parts(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Return an annotation without Optional and Annotated, its marks, and whether it takes None."""
    optional = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [h for h in typing.get_args(hint) if h is not type(None)]
        optional = len(rest) < len(typing.get_args(hint))
        hint = rest[0] if len(rest) == 1 else Any
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__, optional
    return hint, (), optional


def kind(hint: Any) -> type:
    """Return the type of an annotation's values: int, float, bool, str or tuple; else object."""
    inner = parts(hint)[0]
    if typing.get_origin(inner) is Literal:
        return type(typing.get_args(inner)[0])
    inner = typing.get_origin(inner) or inner
    return inner if inner in (int, float, bool, str, tuple) else object


def mark(hint: Any, cls: type) -> Any:
    """Return the annotation's mark of class `cls`; None where it has none."""
    return next((m for m in parts(hint)[1] if isinstance(m, cls)), None)


def allowed(hint: Any) -> str:
    """Return what an annotation allows, in words for an error."""
    inner, marks, optional = parts(hint)
    if typing.get_origin(inner) is Literal:
        text = ", ".join(map(str, typing.get_args(inner)))
    elif typing.get_origin(inner) is tuple:
        args = typing.get_args(inner)
        several = Ellipsis in args
        each = allowed(args[0]) if several or len(set(args)) == 1 else ""
        if not each:
            text = "(" + ", ".join(map(allowed, args)) + ")"
        else:
            text = f"{'numbers' if several else f'{len(args)} values'}, each {each}"
        text += " (or one number for both)" if mark(hint, Square) else ""
    else:
        words = {int: "whole numbers", float: "numbers", bool: "True, False", str: "text"}
        said = [str(m) for m in marks if isinstance(m, Range)]
        said += [m.meaning for m in marks if isinstance(m, Text)]
        text = ", ".join(said) or words.get(inner, getattr(inner, "__name__", str(inner)))
    return f"{text}, or None" if optional else text


# ------------------------------------------------------------------ values
def square(hint: Any, value: Any) -> Any:
    """Return the value, or the pair that a plain number (or a list of one) stands for."""
    if mark(hint, Square):
        if isinstance(value, int) and not isinstance(value, bool):
            return value, value
        if isinstance(value, list | tuple) and len(value) == 1:
            return value[0], value[0]
    return value


def fit(hint: Any, value: Any, key: str) -> Any:
    """Return the value in the type of the annotation: tuples for lists, floats for integers.

    Args:
      hint: an annotation; a type in it that is no class is not checked.
      key: names the setting in errors.

    Raises:
      ConfigError: the annotation does not allow the value.
    """
    inner, marks, optional = parts(hint)
    # on the command line, None for a setting that is text comes as the word
    if optional and (value is None or (kind(hint) is str and value == "None")):
        return None
    value = square(hint, value)
    if typing.get_origin(inner) is Literal:
        if not any(value == a and type(value) is type(a) for a in typing.get_args(inner)):
            raise wrong(key, value, hint)
        return value
    if typing.get_origin(inner) is tuple or inner is tuple:
        return _fit_tuple(hint, value, key)
    if inner in (int, float):
        if not isinstance(value, (int, inner)) or isinstance(value, bool):
            raise wrong(key, value, hint, "whole numbers, " if inner is int else "numbers, ")
        if any(value not in m for m in [ANY, *marks] if isinstance(m, Range)):
            raise wrong(key, value, hint)
        return inner(value)
    if isinstance(inner, type) and not isinstance(value, inner):
        raise wrong(key, value, hint)
    return value


def _fit_tuple(hint: Any, value: Any, key: str) -> Any:
    """Return a list or tuple as the tuple that the annotation describes; see `fit`."""
    inner, marks, _ = parts(hint)
    if not isinstance(value, list | tuple):
        raise wrong(key, value, hint)
    args = typing.get_args(inner) or (Any, Ellipsis)
    each = (args[0],) * len(value) if Ellipsis in args else args
    short = any(isinstance(m, Length) and len(value) < m.minimum for m in marks)
    if len(each) != len(value) or short:
        raise wrong(key, value, hint)
    out = []
    for h, x in zip(each, value, strict=True):
        try:
            out.append(fit(h, x, key))
        except ConfigError as error:
            if typing.get_origin(parts(h)[0]) is tuple:
                raise  # the error names the innermost element already
            text = str(error).replace(f"{key}: {x!r};", f"{key}: {x!r} in {value!r};", 1)
            raise ConfigError(text) from None
    return tuple(out)


def wrong(key: str, value: Any, hint: Any, kind: str | None = None) -> ConfigError:
    """Return the error about a value that the annotation does not allow.

    Args:
      kind: words before those of the annotation; None = none.
    """
    return ConfigError(f"{key}: {value!r}; allowed: {kind or ''}{allowed(hint)}")


def check(thing: Any, where: str) -> None:
    """Check every setting of a dataclass or module, and of those in it, against its annotation.

    Args:
      where: names the object in errors.

    Raises:
      ConfigError: an annotation does not allow a value.
    """
    for name, hint in fields(type(thing)).items():
        value, key = getattr(thing, name), f"{where}.{name}" if where else name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            inner = parts(hint)[0]
            if pluggable(inner) and not isinstance(value, inner):
                raise wrong(key, type(value).__name__, hint)
            check(value, key)
        else:
            fit(hint, value, key)
