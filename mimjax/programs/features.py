"""Write features of images into a file, one row per image.

  mimjax features --model=WORKDIR [--images=FOLDER] [--output=FILE.npz|FILE.parquet]
    [--layers=norm,-1,0] [--pool=mean,cls,all]
  mimjax features --model=FILE --heads=12 --images=FOLDER --output=FILE.parquet

The features are those of `mimjax.load(...).encode` and of the evaluators' probes. Columns are
called "mean_norm", "cls_block_11"; beside them stand `path` and `label`. Files that cannot be read
are left out, counted and named.
"""

from __future__ import annotations

import os

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import opening

REQUIRED = ("model",)


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_encode_flags()
    flags.DEFINE_string("output", None, "FILE.npz or FILE.parquet; default: WORKDIR/features.npz.")
    flags.DEFINE_list("layers", ["norm"], "norm, or blocks from 0; negative: from the end.")
    flags.DEFINE_list("pool", ["mean"], "mean (of the patches' tokens), cls, all (tokens).")
    flags.DEFINE_integer("count", 0, "At most that many images, drawn from all; 0 = all.")
    flags.DEFINE_bool("overwrite", False, "Replace features written there before, unchanged.")


def main() -> None:
    """Encode the images and write the file."""
    from mimjax.inference import features, workdir
    from mimjax.storage import tables

    f = flags.FLAGS
    place = opening.workdir_of(f.model)
    if f.output is None and place is None:
        raise ConfigError("--output: missing; it may be left out with a workdir alone")
    output = os.path.expanduser(f.output or os.path.join(place or "", "features.npz"))
    tables.check(output, f.overwrite, {"the run": place, "the images": f.images})
    opened = opening.open_model()
    wanted = features.readings(f.pool, f.layers, opened.model)
    subset = opening.open_source(opened, f.images, f.split, f.count)
    names = workdir.image_names(subset)
    source = features.Readable(subset, opened.model.reader.how.channels)
    shapes, rows = {}, 0
    with tables.create(output, f.overwrite, opened.about) as table:
        for part in features.encode(opened.model, source, wanted, f.batch_size, f.threads):
            table.add([names[i] for i in part.places], part.labels, part.features)
            shapes = {name: x.shape[1:] for name, x in part.features.items()}
            rows += len(part.places)
        skipped = features.say_bad(source)  # before the table is closed: all bad is an error
    print(f"{opened.title}: features of {rows:,} images")
    for name, shape in shapes.items():
        print(f"  {name}  float32 [{' '.join(map(str, (rows, *shape)))}]")
    if subset.num_classes:
        print(f"  label  {subset.label_name}, {subset.num_classes} in all")
    print("\n".join([*skipped, f"features: {output}"]))
