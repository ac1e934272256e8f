"""What a setting may be: its annotation says so, and `fit` holds a value against it.

    pos_embed: Literal["learned", "none"]     one of these
    drop_path: Rate                           Annotated[float, Range(0, 1, high_open=True)]
    heads: Count | None = None                None = not given
    size: Size | None = None                  (height, width); a plain number is a square
    path: Annotated[str, Text("a folder")]    any text; what it means is said

`schema` reads the annotations of every section of a config; `check` those of an object made in
Python. Rules between several settings stand in the classes and in `checks`.
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

CLOCK = {"clock"}  # of a task; the run sets it
FLAX = {"parent", "name", "dtype"}  # of a module; flax sets the first two, the run the third


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers between two bounds.

    Attributes:
      low, high: the bounds; infinite = none.
      low_open, high_open: whether the bound itself is outside.
      note: what a user should know about the numbers.
    """

    low: float = 0
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    note: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and abs(value) <= sys.float_info.max  # which NaN is not, either

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
    """A string that is no choice among a few; `meaning` says what it stands for."""

    meaning: str


@dataclasses.dataclass(frozen=True)
class Length:
    """The least number of a tuple's elements."""

    least: int


class Square:
    """Marks a pair for which a plain number n may be given; it means (n, n)."""


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Index = Annotated[int, ANY]  # of a block, from the end if negative: checks.block_index
Number = Annotated[float, ANY]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, low_open=True)]
Share = Annotated[float, Range(0, 1)]
Rate = Annotated[float, Range(0, 1, high_open=True)]  # of dropping, or of an average's decay
Some = Annotated[float, Range(0, 1, low_open=True)]  # a share that is not nothing
Size = Annotated[tuple[Count, Count], Square()]  # (height, width)
_PIXELS = "pixel values are scaled to 0 to 1: divide by 255"
Mean = tuple[Annotated[float, Range(0, 1, note=_PIXELS)], ...]
Std = tuple[Annotated[float, Range(0, 1, low_open=True, note=_PIXELS)], ...]
Rule = tuple[Annotated[str, Text("a regular expression")], NonNegative]


# ------------------------------------------------------------------ annotations
@functools.cache
def fields(cls: type) -> dict[str, Any]:
    """The settings of a dataclass or linen module, and the annotation of each.

    Fields that a method derives (`DERIVED`) are no settings.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    hidden = CLOCK | set(getattr(cls, "DERIVED", ()))
    hidden |= FLAX if issubclass(cls, nn.Module) else set()
    names = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in hidden]
    return {name: hints[name] for name in names}


def parts(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """An annotation without Optional and Annotated, the marks in it, and whether it takes None."""
    optional = False
    if typing.get_origin(hint) in (Union, types.UnionType):
        rest = [h for h in typing.get_args(hint) if h is not type(None)]
        optional = len(rest) < len(typing.get_args(hint))
        hint = rest[0] if len(rest) == 1 else Any
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__, optional
    return hint, (), optional


def kind(hint: Any) -> type:
    """The Python type of an annotation's values: int, float, bool, str, tuple; else object."""
    inner = parts(hint)[0]
    if typing.get_origin(inner) is Literal:
        return type(typing.get_args(inner)[0])
    inner = typing.get_origin(inner) or inner
    return inner if inner in (int, float, bool, str, tuple) else object


def mark(hint: Any, cls: type) -> Any:
    """The annotation's mark of this class, or None."""
    return next((m for m in parts(hint)[1] if isinstance(m, cls)), None)


def allowed(hint: Any) -> str:
    """What an annotation allows, in words."""
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
def split_commas(text: str) -> list[str]:
    """Return the parts between commas; a quoted part keeps its commas and loses its quotes.

    Raises:
      ConfigError: a quote that does not end.
    """
    out, part, quote = [], "", ""
    for letter in text:
        if letter in ("'", '"') and quote in ("", letter):
            quote = "" if quote else letter
        elif letter == "," and not quote:
            out, part = [*out, part], ""
        else:
            part += letter
    if quote:
        raise ConfigError(f"config argument {text!r}: no end of {quote}; allowed: pairs of quotes")
    return [*out, part]


def square(hint: Any, value: Any) -> Any:
    """The value, or the pair that a plain number means; lists become tuples."""
    if mark(hint, Square):
        if isinstance(value, int) and not isinstance(value, bool):
            return value, value
        if isinstance(value, list | tuple) and len(value) == 1:
            return value[0], value[0]
    return value


def fit(hint: Any, value: Any, key: str) -> Any:
    """The value as the annotation has it: tuples for lists, floats for integers.

    Args:
      hint: an annotation; what it does not say is not checked.
      key: names the setting in errors.

    Raises:
      ConfigError: it is not allowed.
    """
    inner, marks, optional = parts(hint)
    # the command line gives words to settings that are text
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
    inner, marks, _ = parts(hint)
    if not isinstance(value, list | tuple):
        raise wrong(key, value, hint)
    args = typing.get_args(inner) or (Any, Ellipsis)
    each = (args[0],) * len(value) if Ellipsis in args else args
    short = any(isinstance(m, Length) and len(value) < m.least for m in marks)
    if len(each) != len(value) or short:
        raise wrong(key, value, hint)
    out = []
    for h, x in zip(each, value, strict=True):
        try:
            out.append(fit(h, x, key))
        except ConfigError as error:
            if typing.get_origin(parts(h)[0]) is tuple:
                raise  # it names the part of the part
            text = str(error).replace(f"{key}: {x!r};", f"{key}: {x!r} in {value!r};", 1)
            raise ConfigError(text) from None
    return tuple(out)


def wrong(key: str, value: Any, hint: Any, kind: str | None = None) -> ConfigError:
    """The error of a value that the annotation does not allow."""
    return ConfigError(f"{key}: {value!r}; allowed: {kind or ''}{allowed(hint)}")


def check(thing: Any, where: str) -> None:
    """Every setting of a dataclass or module, and of those in it, is what its annotation allows.

    Args:
      where: names the object in errors.

    Raises:
      ConfigError: one is not.
    """
    for name, hint in fields(type(thing)).items():
        value, key = getattr(thing, name), f"{where}.{name}" if where else name
        if dataclasses.is_dataclass(value):
            check(value, key)
        else:
            fit(hint, value, key)
