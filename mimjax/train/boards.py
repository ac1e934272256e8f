"""Boards, on which curves are watched: TensorBoard, Weights & Biases, a user's own.

`boards` holds a section for each, by name. A user's own is a dataclass that derives from `Board`:

    @dataclasses.dataclass
    class Lines(Board):                    # my.py; --config.boards.lines=my.py:Lines
        path: Annotated[str, Text("a file")] = "lines.txt"

        def write(self, step, values): ...

A run without boards is the same run. wandb is imported in the modes "offline" (files in the
workdir, sent by `wandb sync` when somebody wants to) and "online" alone.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import sys
import uuid
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from mimjax.data.decoding import open_image
from mimjax.errors import ConfigError
from mimjax.storage.files import Workdir
from mimjax.values import Text

ID_FILE = "wandb_id.txt"  # a restart continues the same run there too


@dataclasses.dataclass
class Board:
    """Base class of boards, which get the numbers of each line of metrics.jsonl and the pictures.

    The fields of a subclass are its settings; what it opens it keeps in other attributes. Its
    methods are called in one process only, the one that writes.
    """

    PLUGGABLE: ClassVar[bool] = True
    HOME: ClassVar[tuple[str, ...]] = ("mimjax.train.boards",)

    def check(self, where: str) -> None:
        """Look for what the board needs, before anything is written.

        Args:
          where: names the section in errors, "boards.wandb".

        Raises:
          ConfigError: a package is missing.
        """

    def wanted(self, workdir: Workdir) -> bool:
        """Return whether the board is to be opened for a run with this workdir."""
        return True

    def open(self, workdir: Workdir, config: dict[str, Any], step: int) -> None:
        """Begin or continue.

        Args:
          config: every setting of the run, nested.
          step: updates made; those after it are to come (at 0 its evaluation too).
        """

    def write(self, step: int, values: dict[str, float]) -> None:
        """Show numbers as they were measured, NaN included."""
        raise NotImplementedError(type(self).__name__)

    def picture(self, step: int, name: str, data: bytes) -> None:
        """Show the bytes of a PNG file."""

    def rewind(self, step: int) -> None:
        """Prepare for the steps after `step`, which will be made again."""

    def close(self) -> None:
        """End; the run is over or stops."""


@dataclasses.dataclass
class TensorBoard(Board):
    """Event files in the workdir, where that is local; there are no settings.

    Each file begins with a mark that takes back the points from its first step on: those that a
    run has made before it was killed, and makes again.
    """

    def wanted(self, workdir: Workdir) -> bool:
        return workdir.is_local

    def open(self, workdir: Workdir, config: dict[str, Any], step: int) -> None:
        self.folder = str(workdir.path)
        self._begin(step)

    def _begin(self, step: int) -> None:
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
        self._begin(max(step, 0))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def summary_writer() -> Any:
    """Return the writer of tensorboardX, which imports protobuf, without an import of torch.

    tensorboardX imports torch where that is installed, to recognize its tensors: seconds at every
    start.
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


@dataclasses.dataclass
class WandB(Board):
    """A Weights & Biases run with the whole configuration.

    Attributes:
      mode: "offline" = files in the workdir; it and "online" need mimjax[wandb].
      project: the project's name there.
    """

    mode: Literal["off", "offline", "online"] = "off"
    project: Annotated[str, Text("a name")] = "mimjax"

    def check(self, where: str) -> None:
        if self.mode != "off":
            import_wandb(self.mode, where)

    def wanted(self, workdir: Workdir) -> bool:
        return self.mode != "off"

    def open(self, workdir: Workdir, config: dict[str, Any], step: int) -> None:
        name = workdir.read_text(ID_FILE).strip()
        if not name:
            name = uuid.uuid4().hex[:8]
            workdir.write_text(ID_FILE, name + "\n")
        self.run = import_wandb(self.mode).init(
            project=self.project,
            id=name,
            name=workdir.path.name,
            resume="allow",
            mode=self.mode,
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
            self.run.log({"step": step, name: import_wandb(self.mode).Image(image)})

    # no rewind: curves are drawn over "step", and the later of two points wins

    def close(self) -> None:
        self.run.finish()


def import_wandb(mode: str, where: str = "boards.wandb") -> Any:
    """Return the module.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise ConfigError(
            f"{where}.mode: {mode!r}, but wandb is not installed; allowed: off, or "
            'pip install "mimjax[wandb]"'
        ) from None


def open_boards(
    boards: Iterable[Board], workdir: Workdir, config: dict[str, Any], step: Any = 0
) -> list[Board]:
    """Open the boards of a run and return them; none in processes that do not write.

    Args:
      config: every setting of the run, nested, which wandb shows.
      step: updates that the run has made, a number or an array; the curves go on after it.
    """
    opened = [b for b in boards if workdir.writer and b.wanted(workdir)]
    for board in opened:
        board.open(workdir, config, int(step))
    return opened
