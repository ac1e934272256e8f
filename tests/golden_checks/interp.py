"""BEiT's resizing of learned positions against numbers of the same rule."""

import numpy as np

from golden_checks import common
from mimjax.torch_io.read import positions


def beit(z, meta):
    source, target = meta["src_grid"], meta["dst_grid"]
    common.close("q", positions.growth(source, target), meta["q"], 1e-12)
    coordinates = positions.displacements(source, target)
    common.close("src_coords", coordinates, z["out/src_coords"], 1e-9)
    common.close("dst_coords", np.arange(1.0 - target, target), z["out/dst_coords"], 0)
    grids = (source, source), (target, target)
    table = positions.resize_relative(z["in/rel_table"], *grids)
    common.table("rel_table", table, z["out/rel_table"], 1e-6)
    grids = (meta["pos_from"],) * 2, (meta["pos_to"],) * 2
    pos = positions.resize_absolute(z["in/pos_embed"], *grids)
    common.table("pos_embed", pos, z["out/pos_embed"], 1e-6)
