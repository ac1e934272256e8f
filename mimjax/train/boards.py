"""Where curves are watched from outside: TensorBoard events, and Weights & Biases if asked for.

Nothing here decides anything: a run without boards is the same run. wandb is imported in the modes
"offline" (files in the workdir, sent by `wandb sync` when somebody wants to) and "online" alone.
"""

from __future__ import annotations

import importlib
import io
import sys
import uuid
from typing import Any, Protocol

import numpy as np

from mimjax.data.decoding import open_image
from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir

ID_FILE = "wandb_id.txt"  # a restart continues the same run there too


class Board(Protocol):
    """Gets the numbers of every line of metrics.jsonl, and the pictures."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """`values` as measured, NaN included."""
        ...

    def picture(self, step: int, name: str, data: bytes) -> None:
        """A PNG file."""
        ...

    def rewind(self, step: int) -> None:
        """The steps after `step` will be made again."""
        ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the workdir.

    Each begins with a mark that takes back the points from its first step on: those that a run has
    made before it was killed, and makes again.
    """

    def __init__(self, workdir: Workdir, step: int = 0):
        """`step` = updates made; those after it are to come (at 0 its evaluation too)."""
        self.folder = str(workdir.path)
        self._open(step)

    def _open(self, step: int) -> None:
        # files of one second would have one name, and the second one would be the first, emptied
        suffix = f".{uuid.uuid4().hex[:8]}"
        first = step + 1 if step > 0 else 0
        self.writer = summary_writer()(self.folder, purge_step=first, filename_suffix=suffix)

    def picture(self, step: int, name: str, data: bytes) -> None:
        with open_image(io.BytesIO(data)) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self.writer.flush()

    def rewind(self, step: int) -> None:
        self.writer.close()
        self._open(max(step, 0))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def summary_writer() -> Any:
    """The class of tensorboardX, imported where it writes (it imports protobuf), and without torch.

    It imports torch where that is installed, to recognize its tensors: seconds at every start.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # makes imports fail
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


class WandB:
    """A Weights & Biases run with the whole configuration."""

    def __init__(self, workdir: Workdir, mode: str, project: str, config: dict[str, Any]):
        name = workdir.read_text(ID_FILE).strip()
        if not name:
            name = uuid.uuid4().hex[:8]
            workdir.write_text(ID_FILE, name + "\n")
        self.run = import_wandb(mode).init(
            project=project,
            id=name,
            name=workdir.path.name,
            resume="allow",
            mode=mode,
            dir=str(workdir.path) if workdir.is_local else None,
            config=config,
            save_code=False,
        )
        # not wandb's own step, which may not go back: a restart makes some steps again
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"step": step} | values)

    def picture(self, step: int, name: str, data: bytes) -> None:
        with open_image(io.BytesIO(data)) as image:
            self.run.log({"step": step, name: import_wandb("online").Image(image)})

    def rewind(self, step: int) -> None:
        pass  # its curves are drawn over "step", and the later of two points wins

    def close(self) -> None:
        self.run.finish()


def check(mode: str) -> None:
    """Before anything is written.

    Raises:
      ConfigError: wandb is wanted and not installed.
    """
    if mode != "off":
        import_wandb(mode)


def import_wandb(mode: str) -> Any:
    """The module."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            f"wandb: {mode!r}, but wandb is not installed; allowed: off, or "
            'pip install "mimjax[wandb]"'
        ) from None


def open_boards(
    workdir: Workdir, mode: str, project: str, config: dict[str, Any], step: Any = 0
) -> list[Board]:
    """The boards of a run; none in processes that do not write.

    Args:
      mode: of wandb: "off", "offline" or "online".
      config: shown on wandb's page.
      step: updates that the run has made, a number or an array; the curves go on after it.
    """
    boards: list[Board] = []
    if workdir.writer and workdir.is_local:
        boards.append(TensorBoard(workdir, int(step)))
    if workdir.writer and mode != "off":
        boards.append(WandB(workdir, mode, project, config))
    return boards
