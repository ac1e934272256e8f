"""Draw what a trained encoder attends to on full images, with CAE's contour (its Figure 6).

  mimjax attention --model=WORKDIR [--images=FOLDER|FILE] [--layers=-1] [--show_heads=mean]
  mimjax attention --model=FILE --images=FOLDER|FILE --output=PNG

One column per chosen block, or per block and head, shows where CLS looks, or all tokens on average.
The contour holds the fewest patches with a share of the attention, --mass. Files that cannot be
read are left out and named; others are shown in their places.
"""

from __future__ import annotations

from typing import Any

from absl import flags

from mimjax.errors import ConfigError
from mimjax.programs import cli, opening

REQUIRED = ("model",)
NAME = "attention.png"


def define_flags() -> None:
    """Define all flags of the program."""
    opening.define_look_flags()
    flags.DEFINE_list("layers", ["-1"], "Blocks from 0; negative ones count from the end.")
    flags.DEFINE_list("show_heads", ["mean"], "mean, all, or numbers from 0.")
    flags.DEFINE_enum("queries", None, ["cls", "mean"], "Whose attention; without it CLS if any.")
    flags.DEFINE_float("mass", 0.5, "Attention inside the contour; 0 = none.", 0.0, 1.0)


def main() -> None:
    """Draw the picture and print how far the attention is spread."""
    from mimjax.inference import workdir
    from mimjax.inference.attention import Attention
    from mimjax.plots import heat_maps, reconstructions

    f = flags.FLAGS
    opening.check_look(NAME)
    if f.heads is not None and not opening.is_file(f.model):
        raise ConfigError("--heads: with a workdir, whose run knows it; allowed: --show_heads")
    opened = opening.open_model()
    bench, notes, params = images_of(opened)
    reader = Attention(bench, f.count, params)
    depth = reader.depth
    layers = [i % depth for i in cli.integers("layers", f.layers, -depth, depth - 1)]
    layers = list(dict.fromkeys(layers))  # -1 and the last one's number are the same
    heads = heads_of(f.show_heads, reader.heads)
    queries = reader.queries(f.queries)
    images, maps = reader.read(params, layers, heads, queries)
    columns = heat_maps.columns(images, maps, reader.grid, f.mass)
    caption = f"{opened.title}. {heat_maps.caption(queries, heads, f.mass)}"
    data = reconstructions.png(reconstructions.draw(columns, caption))
    place = workdir.save(opened, NAME, f.output, data)
    print("".join(line + "\n" for line in notes), end="")
    print(f"{opened.title}: attention of {queries} on {len(images)} images")
    for name, share in maps.items() if f.mass else ():
        part = heat_maps.smallest_set(share, f.mass).mean()
        print(f"  {name}: {f.mass:.0%} of it lies on {part:.0%} of the patches")
    print(f"picture: {place}")


def images_of(opened: opening.Opened) -> tuple[Any, list[str], Any]:
    """Return the images as a bench, what is to be said of them, and the encoder's parameters."""
    import jax

    from mimjax.inference.encoders import EncoderAlone
    from mimjax.inference.samples import Bench
    from mimjax.sharding import make_mesh

    f, model = flags.FLAGS, opened.model
    if opened.run is not None:
        bench, notes = opened.run.look(f.images, f.count)
        return bench, notes, model.params["encoder"]
    mean, std = model.statistics
    part, notes = opening.readable(opened, f.images, f.count)
    task = EncoderAlone(encoder=model.module, mean=mean, std=std)
    mesh, augment = make_mesh(devices=jax.devices()[:1]), model.reader.augment
    return Bench(task, mesh, part, part, augment=augment), notes, model.params["encoder"]


def heads_of(values: list[str], count: int) -> list[int] | None:
    """Return the numbers that --show_heads names; None = their mean."""
    if values == ["mean"]:
        return None
    if values == ["all"]:
        return list(range(count))
    return cli.integers("show_heads", values, 0, count - 1, "mean, all or ")
