"""Draws features as a map: images or patches that the encoder takes for alike lie side by side.

  python -m mimjax.embedding_map --workdir=DIR [--images=FOLDER] [--method=tsne|pca]
  python -m mimjax.embedding_map --workdir=DIR --of=patches [--method=tsne|pca]

t-SNE or the two leading principal components; the color is the label, where the source has some.
Patches with pca: the three leading components of each patch as a color, beside the images.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from absl import flags

from mimjax import cli

if TYPE_CHECKING:
    from mimjax.embedding import Points


def main() -> None:
    from mimjax import embedding, encoding, pictures, trained
    from mimjax.errors import ConfigError

    f = flags.FLAGS
    colors = f.of == "patches" and f.method == "pca"
    if f.output is None and f.workdir is None:
        raise ConfigError("--output: missing; it may be left out with --workdir alone")
    count = (embedding.SHOWN if colors else embedding.POINTS) if f.count is None else f.count
    trained.check_flags(count, f.output)
    least = 1 if colors else embedding.LEAST
    if count < least:
        raise ConfigError(f"--count: {count}; allowed: {least} or more")
    opened = encoding.open_model()
    pool = "all" if f.of == "patches" else f.pool
    ((_, layer),) = wanted = encoding.readings([pool], [f.layer], opened.model)
    name = opened.model.check(pool, layer)
    images = count if f.of == "images" or colors else embedding.images_for(count, opened.model.grid)
    subset = encoding.open_source(opened, f.images, f.split, images)
    source = encoding.Readable(subset, opened.model.reader.how.channels)
    rows = list(encoding.encode(opened, source, wanted, f.batch_size, f.threads))
    skipped = encoding.say_bad(source)
    found = embedding.gather(rows, f"{pool}_{name}", f.of, opened.model, 0 if colors else count)
    layer_name = "the final norm" if name == "norm" else name.replace("_", " ")
    title = f"{opened.title}, {layer_name}"
    if colors:
        sheet = embedding.color_sheet(found, opened.model.grid, title)
    else:
        sheet = map_of(found, f"{title}, {f.pool}" if f.of == "images" else title, subset)
    print("\n".join([f"{title}: {found.about}", *skipped]))
    print(f"picture: {write(opened, pictures.png(sheet))}")


def map_of(found: Points, title: str, subset):
    """The map that the flags ask for, as a Pillow image."""
    from mimjax import embedding, encoding

    f = flags.FLAGS
    small = f.thumbnails
    if small is None:
        small = f.of == "patches" or len(found.vectors) <= embedding.MOST_THUMBNAILS
    places = embedding.place(found.vectors, f.method)
    names = encoding.label_names(subset)
    return embedding.draw(found, places, title, f.method, subset.label_name, names, small)


def write(opened, data: bytes) -> str:
    """Puts the picture where --output says, or into the workdir; returns where that is."""
    from mimjax import trained
    from mimjax.torch_io import save

    f = flags.FLAGS
    if f.output is None:
        return trained.save(opened, f"embedding_{f.of}_{f.method}.png", None, data)
    save.free(f.output, f.overwrite)
    return trained.save(opened, "", f.output, data)


if __name__ == "__main__":
    cli.define_encode_flags()
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_enum("of", "images", ["images", "patches"], "What is a point of the map.")
    flags.DEFINE_enum("method", "tsne", ["tsne", "pca"], "How points get their places.")
    flags.DEFINE_string("layer", "norm", "norm, or a block from 0; negative: from the end.")
    flags.DEFINE_enum("pool", "mean", ["mean", "cls"], "Of an image's tokens.")
    flags.DEFINE_integer("count", None, "Points; default: 1000. Of patches with pca: 12 images.")
    flags.DEFINE_bool("thumbnails", None, "Small images, not dots; default: up to 600 points.")
    flags.DEFINE_string("output", None, "The PNG file; without it one in WORKDIR/pictures.")
    cli.run(main, required=())
