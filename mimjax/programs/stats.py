"""Compute mean and standard deviation of each channel, for `method.mean` and `method.std`.

  mimjax stats --config=mae --config.data.path=FOLDER
  mimjax stats --images=FOLDER --channels=12

The numbers are those of whole decoded training images on the scale 0 to 1, before any crop; every
image weighs the same whatever its size. Files that cannot be read are left out and named.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from mimjax.data import configured, value_range
from mimjax.data.bad_files import BadFiles
from mimjax.data.index import shown
from mimjax.data.sources import make_source
from mimjax.data.statistics import statistics
from mimjax.errors import ConfigError
from mimjax.programs import cli, parser

REQUIRED: tuple[str, ...] = ()


def overrides(mean: np.ndarray, std: np.ndarray) -> list[str]:
    """Return command-line overrides, quoted for a shell."""
    numbers = lambda x: "(" + ",".join(f"{v:.4f}" for v in x) + ("," if len(x) == 1 else "") + ")"
    found = [f"'--config.method.{k}={numbers(v)}'" for k, v in (("mean", mean), ("std", std))]
    return [f"--config.data.channels={len(mean)}", *found]


def define_flags() -> None:
    """Define all flags of the program."""
    parser.define()
    flags.DEFINE_string("images", None, "Folder of images, without a config.")
    flags.DEFINE_integer("channels", 3, "Of the images in --images.")
    flags.DEFINE_integer("count", 10_000, "At most that many images, drawn from all of them.")
    cli.define_base_flags()


def main() -> None:
    """Compute the numbers and print them as overrides of a config."""
    f = flags.FLAGS
    if (f.config is None) == (f.images is None):
        raise ConfigError("--config, --images: both or none given; allowed: one of them")
    if f.count < 1:
        raise ConfigError(f"--count: {f.count}; allowed: 1 or more")
    if f.config is not None:
        if f["channels"].present:
            raise ConfigError("--channels: with --config; allowed: --config.data.channels")
        source = configured.make_split(f.config, "train")
        bad_files = configured.make_bad_files(f.config)
    else:
        options = {} if f.channels == 3 else {"channels": f.channels}
        source = make_source("folder", "train", path=f.images, test_fraction=0.0, **options)
        bad_files = BadFiles(0.01)
    mean, std, done = statistics(source, f.count, bad_files)
    print(f"{done:,} of {len(source):,} training images, {len(mean)} channels, on the scale 0 to 1")
    for note in getattr(source, "notes", ()):
        print(f"data: {note}")
    if text := value_range.advise(source):
        print(f"WARNING: {text}")
    if bad_files.paths:
        print(f"{len(bad_files.paths):,} files cannot be read:")
        print("\n".join(f"  {shown(path)}" for path in sorted(bad_files.paths)))
    for number, (m, s) in enumerate(zip(mean, std)):
        print(f"  channel {number:2}  mean {m:.4f}  std {s:.4f}")
    if std.min() == 0:
        constant = ", ".join(str(i) for i in np.flatnonzero(std == 0))
        print(f"channel {constant} is constant: give its std a positive number by hand")
    print(" ".join(overrides(mean, std)))
