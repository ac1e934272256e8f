"""What a composition of parts must satisfy, so that no error comes from inside jax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mimjax import values
from mimjax.errors import ConfigError
from mimjax.methods.parts import Term
from mimjax.schema import brief
from mimjax.targets.base import Target
from mimjax.task import PLACES, Predictor, View

if TYPE_CHECKING:
    from mimjax.methods.mim import MIM


class Row(NamedTuple):
    """One requirement.

    Attributes:
      holds: whether it is met.
      field: the setting that is wrong otherwise, without "method.".
      found: its value in words.
      allowed: what it may be.
    """

    holds: Any
    field: str
    found: str
    allowed: Iterable[str]


def check(task: MIM) -> None:
    """Check a composition, a `MIM`.

    Raises:
      ConfigError: a requirement is not met; the first one is named.
    """
    for holds, field, found, allowed in rows(task):
        if not holds:
            words = ", ".join(allowed) or "nothing"
            raise ConfigError(f"method.{field}: {found}; allowed: {words}")


def rows(task: MIM) -> Iterator[Row]:
    """Yield all requirements; a row may rely on those before it."""
    weights = [t.weight for t in task.parts(Term).values()]
    yield Row(any(weights), "terms", "all weights 0", ["one above 0"])
    attend = [k for k, t in task.parts(Target).items() if t.has_attention]
    reads = task.masking.reads
    words = attend or ["another masking, as no target here knows where its class token looks"]
    yield Row(reads in ("", *attend), "masking.reads", repr(reads), words)
    if task.regressor:
        whole = task.encoder.use_mask_token
        words = ["False where a regressor predicts masked patches from visible ones"]
        yield Row(not whole, "encoder.use_mask_token", "True", words)
    for name, term in task.parts(Term).items():
        yield from of_term(task, name, term)
    enc = task.encoder
    fixed = enc.positions or any(task.network(name).pos_grid for name in task.networks)
    words = ["None where no network has fixed positions"]
    yield Row(enc.pos_grid is None or fixed, "encoder.pos_grid", str(enc.pos_grid), words)
    yield from of_targets(task)
    yield from of_networks(task)
    yield from of_average(task)


def of_term(task: MIM, name: str, t: Term) -> Iterator[Row]:
    """Yield what a term asks for: its parts, places, loss and width."""
    enc, masking = task.encoder, task.masking
    targets, networks = task.parts(Target), task.parts(Predictor)
    yield Row(t.target in targets, f"{name}.target", repr(t.target), targets)
    yield Row(t.network in networks, f"{name}.network", repr(t.network), networks)
    if not t.weight:
        return
    target = targets[t.target]
    has = enc.num_prefix, True, enc.use_mask_token or task.regressor
    given = tuple(p for p, there in zip(PLACES, has, strict=True) if there)
    places = [p for p in networks[t.network].places(enc, given) if p in target.places(enc)]
    at = f"{t.at!r} of {t.target} and {t.network}"
    yield Row(set(t.at.split("+")) <= set(places), f"{name}.at", at, places)
    alike = masking.weights == "none" and masking.sequences == 1
    words = ["masked", "cls"]
    if "weights" in values.fields(type(masking)):
        words.append(f"{t.at} with method.masking.weights=none")
    under = f"{t.at!r} under {brief(masking)}, which weighs or divides the masked patches"
    yield Row(alike or t.at in ("masked", "cls"), f"{name}.at", under, words)
    words = [f"a loss of {target.kind}"]
    yield Row(t.loss.kind == target.kind, f"{name}.loss", brief(t.loss), words)
    plain = t.normalize == "none" or target.kind == "vectors"
    yield Row(plain, f"{name}.normalize", f"{t.normalize!r} of {target.kind}", ["none"])
    width, out = target.width(enc), task.width(t.network)
    words = [f"{out}, as {t.network} predicts"]
    yield Row(width == out, f"{name}.target", f"{t.target!r}, vectors of {width}", words)


def of_targets(task: MIM) -> Iterator[Row]:
    """Yield what targets ask for: a reader, the student's grid and channels, an average."""
    enc, average, terms = task.encoder, task.average, task.parts(Term).values()
    views: dict[str, View] = {}
    for name, t in task.parts(Target).items():
        used = name == task.masking.reads or any(name == term.target for term in terms)
        yield Row(used, name, "named by no term", ["the target of a term"])
        if name not in task.targets:
            continue
        grid = t.grid(enc)
        yield Row(grid == enc.grid, name, f"a grid of {grid}", [f"{enc.grid}, the encoder's"])
        channels, words = t.channels(enc), [f"{len(task.mean)}, as method.mean has"]
        yield Row(channels == len(task.mean), name, f"it reads {channels} channels", words)
        for view, v in t.views(enc).items():
            same = views.setdefault(view, v) == v
            yield Row(same, name, f"{view} of {v.size}", [f"{views[view].size}, as another's"])
        lacking = set(t.networks) - set(average.networks if average else ())
        words = ["with method.average over " + "+".join(t.networks)]
        yield Row(not (t.of == "average" and lacking), f"{name}.of", "'average'", words)


def of_networks(task: MIM) -> Iterator[Row]:
    """Yield that every network is read by a term."""
    terms = task.parts(Term).values()
    for name in task.parts(Predictor):
        used, words = any(name == t.network for t in terms), ["the network of a term"]
        if name == "regressor":
            used = used or any("masked" in t.at for t in terms)
            words = ["None", "one that a term at masked patches reads"]
        yield Row(used, name, "read by no term", words)


def of_average(task: MIM) -> Iterator[Row]:
    """Yield that an average is over networks of the method, and that somebody reads it."""
    average, networks = task.average, task.parts(Predictor)
    if average is None:
        return
    known, names = {"encoder", *networks}, average.networks
    words = ["encoder with any of " + "+".join(networks)]
    yield Row({"encoder"} <= set(names) <= known, "average.networks", repr(names), words)
    named = any(t.of == "average" for t in task.parts(Target).values())
    words = ["None", "evaluate=True", "one that a target reads"]
    yield Row(named or average.evaluate, "average", "read by nobody", words)
