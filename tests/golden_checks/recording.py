"""What a check compares, written down as the golden file that it reads.

The layout of a file is known to its check alone: tokens in another order, several parameters in one
tensor, cells of a map. So the check itself is run on a file whose unknown arrays hold the number of
each of their places. Wherever such numbers come back as what ours is compared with, ours goes to
their places. Afterwards the check must pass on the finished file like on any other.
"""

from unittest import mock

import numpy as np

from golden_checks import common

BASE = 2.0**40  # numbers of places begin here, exact in float64 and larger than any of ours


class Arrays(dict):
    """Arrays by name with the interface of an opened .npz."""

    @property
    def files(self):
        return list(self)


class Places:
    """Arrays of known shapes whose numbers a check brings in."""

    def __init__(self, shapes):
        self.shapes, self.starts, total = shapes, {}, 0
        for key, shape in shapes.items():
            self.starts[key] = total
            total += int(np.prod(shape, dtype=int))
        self.values, self.whole = np.full(total, np.nan), np.zeros(total, bool)

    def numbered(self):
        """Each array with the numbers of its places."""
        size = lambda shape: int(np.prod(shape, dtype=int))
        place = lambda key, shape: BASE + self.starts[key] + np.arange(size(shape), dtype=float)
        return {key: place(key, shape).reshape(shape) for key, shape in self.shapes.items()}

    def take(self, ours, theirs):
        """Put the numbers of `ours` where `theirs` says that they belong."""
        theirs = np.asarray(theirs)
        if theirs.dtype.kind not in "fiu":
            return
        unknown = theirs >= BASE
        if not unknown.any():
            return
        ours = np.asarray(ours)
        places = (theirs[unknown] - BASE).astype(int)
        self.values[places] = np.broadcast_to(ours, theirs.shape)[unknown]
        self.whole[places] = ours.dtype.kind in "iu"

    def arrays(self):
        """What came in; NaN where the check reads nothing.

        Raises:
          ValueError: the check reads nothing of an array.
        """
        out = {}
        for key, shape in self.shapes.items():
            at = slice(self.starts[key], self.starts[key] + int(np.prod(shape, dtype=int)))
            values = self.values[at].reshape(shape)
            if np.isnan(values).all():
                raise ValueError(f"{key}: the check compares nothing with it")
            out[key] = values.astype(np.int64 if self.whole[at].all() else np.float32)
        return out


def record(check, meta, given, wanted):
    """The arrays of a file: those `given` and those of the shapes `wanted`, from the check.

    Args:
      check: of `CHECKS`.
      given: weights and inputs.
      wanted: {key: shape} of outputs, losses, gradients and final weights; "meta/KEY" stands for
        a list in `meta`, which is filled in.
    """
    places = Places(wanted)
    lists = {k: v for k, v in places.numbered().items() if k.startswith("meta/")}
    told = meta | {k.removeprefix("meta/"): v for k, v in lists.items()}
    z = Arrays(given | {k: v for k, v in places.numbered().items() if k not in lists})

    def compared(name, ours, theirs, *_, **__):
        places.take(ours, theirs)

    def moved(name, ours, theirs, start, skip=None):
        for key, value in theirs.items():
            places.take(ours[key], value)

    patches = {"close": compared, "rel": compared, "check_movement": moved}
    equal = lambda ours, theirs, *_: places.take(ours, theirs)
    with (
        mock.patch.multiple(common, **patches),
        mock.patch.object(np.testing, "assert_array_equal", equal),
    ):
        check(z, told)
    found = places.arrays()
    for key in lists:
        meta[key.removeprefix("meta/")] = [float(x) for x in found.pop(key)]
    return given | found
