"""Draw features as a map: images or patches that the encoder takes for alike lie side by side.

  mimjax map --model=WORKDIR|FILE [--images=FOLDER] [--method=tsne|pca]
  mimjax map --model=WORKDIR|FILE --of=patches [--method=tsne|pca]

t-SNE or the two leading principal components; the color is the label, where the source has some.
Patches with pca: the three leading components of each patch as a color, beside the images.
"""

from __future__ import annotations

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import opening

REQUIRED = ("model",)


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_encode_flags()
    flags.DEFINE_enum("of", "images", ["images", "patches"], "What is a point of the map.")
    flags.DEFINE_enum("method", "tsne", ["tsne", "pca"], "How points get their places.")
    flags.DEFINE_string("layer", "norm", "norm, or a block from 0; negative: from the end.")
    flags.DEFINE_enum("pool", "mean", ["mean", "cls"], "Of an image's tokens.")
    flags.DEFINE_integer("count", None, "Points; default: 1000. Of patches with pca: 12 images.")
    flags.DEFINE_bool("thumbnails", None, "Small images, not dots; default: up to 600 points.")
    flags.DEFINE_string("output", None, "The PNG file; without it one in WORKDIR/pictures.")


def main() -> None:
    """Encode the images and write the picture."""
    from mimjax.inference import features, workdir
    from mimjax.plots import embedding, reconstructions

    f = flags.FLAGS
    colors, count = f.of == "patches" and f.method == "pca", points()
    opened = opening.open_model()
    pool = "all" if f.of == "patches" else f.pool
    ((_, layer),) = wanted = features.readings([pool], [f.layer], opened.model, "layer")
    name = opened.model.check(pool, layer)
    images = count if f.of == "images" or colors else embedding.images_for(count, opened.model.grid)
    subset = opening.open_source(opened, f.images, f.split, images)
    source = features.Readable(subset, opened.model.reader.how.channels)
    batches = features.encode(opened.model, source, wanted, f.batch_size, f.threads)
    small = f.thumbnails
    if small is None or colors:
        small = f.of == "patches" or min(count, len(subset)) <= embedding.MOST_THUMBNAILS
    rows = [r if small else r._replace(images=r.images[:0]) for r in batches]  # dots need none
    skipped = features.say_bad(source)
    points_of_map = embedding.gather(
        rows, f"{pool}_{name}", f.of, opened.model, 0 if colors else count
    )
    what = f"{points_of_map.about} by {embedding.words(pool, name)} ({opened.title})."
    if colors:
        sheet = embedding.color_sheet(points_of_map, opened.model.grid, what[0].upper() + what[1:])
    else:
        places = embedding.place(points_of_map.vectors, f.method)
        names = features.label_names(subset)
        caption = f"{embedding.WORDS[f.method]} of {what}"
        sheet = embedding.draw(points_of_map, places, caption, subset.label_name, names, small)
    print("\n".join([f"{opened.title}: {points_of_map.about}", *skipped]))
    print(f"picture: {workdir.save(opened, picture_name(), f.output, reconstructions.png(sheet))}")


def picture_name() -> str:
    """Return the picture's name in WORKDIR/pictures."""
    return f"embedding_{flags.FLAGS.of}_{flags.FLAGS.method}.png"


def points() -> int:
    """Return how many points are wanted, or how many images of patches' colors.

    Raises:
      ConfigError: too few, or flags that do not go together.
    """
    from mimjax.inference import workdir
    from mimjax.plots import embedding

    f = flags.FLAGS
    colors = f.of == "patches" and f.method == "pca"
    place = opening.workdir_of(f.model)
    if f.output is None and place is None:
        raise ConfigError("--output: missing; it may be left out with a workdir alone")
    if f.of == "patches" and f["pool"].present:
        raise ConfigError("--pool: with --of=patches, each is a token; allowed: --of=images")
    if colors and f["thumbnails"].present:
        raise ConfigError("--thumbnails: with --of=patches --method=pca; allowed: other maps")
    count = (embedding.SHOWN if colors else embedding.POINTS) if f.count is None else f.count
    workdir.check_flags(count, f.output, place, picture_name())
    if count < embedding.MIN_POINTS and not colors:
        raise ConfigError(f"--count: {count}; allowed: {embedding.MIN_POINTS} or more for a map")
    return count
