"""Shows what a trained encoder attends to on full images, with CAE's contour (its Figure 6).

  mimjax attention --workdir=DIR [--images=FOLDER|FILE] [--layers=-1] [--heads=mean]

One column per chosen block, or per block and head: where CLS looks, or all tokens on average. The
contour holds the fewest patches with a share of the attention, --mass. Files that cannot be read
are left out and named; others are shown in their places.
"""

from __future__ import annotations

from absl import flags

from mimjax.programs import cli


def main() -> None:
    from mimjax.inference import workdir
    from mimjax.inference.attention import Attention
    from mimjax.plots import heat_maps, reconstructions

    f = flags.FLAGS
    workdir.check_flags(f.count, f.output, f.workdir, "attention.png")
    run = workdir.open_run(f.workdir, f.step)
    bench, notes = run.look(f.images, f.count)
    reader = Attention(bench, f.count, run.abstract_encoder)
    depth = reader.depth
    layers = [i % depth for i in cli.integers("layers", f.layers, -depth, depth - 1)]
    layers = list(dict.fromkeys(layers))  # -1 and the last one's number are the same
    heads = heads_of(f.heads, reader.heads)
    queries = reader.queries(f.queries)
    images, maps = reader.read(run.encoder(), layers, heads, queries)
    columns = heat_maps.columns(images, maps, reader.grid, f.mass)
    caption = f"{run.title}. {heat_maps.caption(queries, heads, f.mass)}"
    data = reconstructions.png(reconstructions.draw(columns, caption))
    place = workdir.save(run, "attention.png", f.output, data)
    print("".join(line + "\n" for line in notes), end="")
    print(f"{run.title}: attention of {queries} on {len(images)} images")
    for name, share in maps.items() if f.mass else ():
        part = heat_maps.smallest_set(share, f.mass).mean()
        print(f"  {name}: {f.mass:.0%} of it lies on {part:.0%} of the patches")
    print(f"picture: {place}")


def heads_of(values: list[str], count: int) -> list[int] | None:
    """The numbers that --heads names; None = their mean."""
    if values == ["mean"]:
        return None
    if values == ["all"]:
        return list(range(count))
    return cli.integers("heads", values, 0, count - 1, "mean, all or ")


if __name__ == "__main__":
    cli.define_look_flags()
    flags.adopt_module_key_flags(cli)
    flags.DEFINE_list("layers", ["-1"], "Blocks from 0; negative ones count from the end.")
    flags.DEFINE_list("heads", ["mean"], "mean, all, or numbers from 0.")
    flags.DEFINE_enum("queries", None, ["cls", "mean"], "Whose attention; without it CLS if any.")
    flags.DEFINE_float("mass", 0.5, "Attention inside the contour; 0 = none.", 0.0, 1.0)
    cli.run(main, required=("workdir",))
