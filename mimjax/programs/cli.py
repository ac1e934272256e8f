"""What every program shares: flags, several processes, and errors as one line."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from mimjax import stopping
from mimjax.errors import ConfigError, Exit, PeerError, RunError, code_of
from mimjax.programs import overrides
from mimjax.schema import Config
from mimjax.storage import files
from mimjax.torch_io.read.files import SUFFIXES

FLAGS = flags.FLAGS
overrides.register()  # before any flag of a config is made


def define_base_flags() -> None:
    """--workdir and --debug, which every program has."""
    flags.DEFINE_string("workdir", None, "Folder of the run, local or gs:// (mimjax[gcs]).")
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def define_look_flags() -> None:
    """Those of programs that look at a trained run's images, in one process."""
    define_base_flags()
    flags.DEFINE_string("images", None, "Folder or file; without it the run's own test images.")
    flags.DEFINE_integer("step", None, "Which checkpoint; without it the newest.")
    flags.DEFINE_integer("count", 8, "At most that many images, drawn from all of them.")
    flags.DEFINE_string("output", None, "The PNG file; without it one in WORKDIR/pictures.")


def define_file_flags() -> None:
    """What only the user can know about a published file; see `file_sizes`."""
    flags.DEFINE_integer("heads", None, "Of a file's encoder, where no tensor shows them.")
    flags.DEFINE_integer("decoder_heads", None, "Of the networks behind it, likewise.")
    flags.DEFINE_list("image_size", None, "height,width; needed where patches fill no square.")


def define_encode_flags() -> None:
    """Those of programs that encode the images of a run or file, in one process."""
    define_base_flags()
    flags.DEFINE_string("weights", None, "A published file instead of --workdir.")
    define_file_flags()
    flags.DEFINE_integer("step", None, "Which checkpoint; without it the newest.")
    flags.DEFINE_bool("ema", False, "The moving average of the encoder, where there is one.")
    flags.DEFINE_string("images", None, "Folder or file; without it the run's own images.")
    flags.DEFINE_enum("split", None, ["train", "test"], "Of the run's own images; default: test.")
    flags.DEFINE_integer("batch_size", 64, "Images at once.")
    flags.DEFINE_integer("threads", 8, "That decode images.", lower_bound=1)


def define_run_flags() -> None:
    """--config, --workdir, --debug and those of multi-process runs."""
    config_flags.DEFINE_config_file("config", None, "configs/METHOD.py[:name=value,...]")
    define_base_flags()
    flags.DEFINE_enum(
        "distributed",
        "off",
        ["off", "auto"],
        "auto: join the processes of a TPU pod or SLURM job, found from the environment.",
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where nothing is found.")
    flags.DEFINE_integer("num_processes", 1, "Number of processes, with --coordinator.")
    flags.DEFINE_integer("process_id", 0, "This process's number, with --coordinator.")


def run(main: Callable[[], None], required: tuple[str, ...] = ("config", "workdir")) -> None:
    """Parses flags, joins processes, runs `main`; ends with a code of `exits.Exit`.

    An error is one line; `--debug` shows its traceback.

    Args:
      required: flags that must be given.
    """
    stopping.install()
    # Overrides of a config are flags of their own, made while parsing: errors arise here too.
    guarded = lambda argv: _guard(lambda: _start(main, required, argv[1:]))
    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    debug = any(a in ("--debug", "-debug", "--debug=true") for a in argv)
    try:
        check_config_flags(argv)
        return FLAGS(argv)
    except stopping.Stopped as stop:
        _stop(stop)
    except (flags.Error, ConfigError, AttributeError, KeyError, ValueError, TypeError) as error:
        if debug:
            traceback.print_exc()
        _fail(" ".join(str(error).split()), Exit.REFUSED)


def check_config_flags(argv: list[str]) -> None:
    """Loads the config and looks up every overridden key, before ml_collections does.

    Its own errors arise inside flag parsing and carry tracebacks in their text.

    Raises:
      ConfigError: no such config file, a config that refuses its arguments, an unknown key.
    """
    given = [a.lstrip("-").partition("=") for a in argv[1:] if a.lstrip("-").startswith("config")]
    paths = [value for name, _, value in given if name == "config"]
    if not paths:
        return
    config = load_config(paths[-1])
    for name, _, _ in given:
        node, where = config, "config"
        for key in name.split(".")[1:]:
            key = key.partition("[")[0]
            if not isinstance(node, ConfigDict) or key not in node:
                allowed = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "no keys"
                raise ConfigError(f"{where}.{key}: unknown; allowed: {allowed}")
            node, where = node[key], f"{where}.{key}"


def load_config(path: str) -> Config:
    """The config that "configs/mae.py:size=l" names."""
    file, _, arg = path.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config: {file!r} is no Python file; allowed: configs/METHOD.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise ConfigError(f"--config: no file {file!r}; allowed: configs/METHOD.py") from None
    return module.get_config(arg or None)


def config_name() -> str:
    """What --config was given."""
    return config_flags.get_config_filename(FLAGS["config"])


def integers(flag: str, values: list[str], low: int, high: int, others: str = "") -> list[int]:
    """A list flag's numbers, each once.

    Args:
      others: what else the flag allows, for errors.

    Raises:
      ConfigError: none at all, or one that is no integer from `low` to `high`.
    """
    allowed = f"{others}integers from {low} to {high}, separated by commas"
    out: list[int] = []
    for text in values:
        if not re.fullmatch(r"\s*-?[0-9]+\s*", text) or not low <= int(text) <= high:
            raise ConfigError(f"--{flag}: {text!r}; allowed: {allowed}")
        out += [int(text)] if int(text) not in out else []
    if not out:
        raise ConfigError(f"--{flag}: empty; allowed: {allowed}")
    return out


def file_sizes() -> tuple[int | None, int | None, tuple[int, int] | None]:
    """--heads, --decoder_heads and --image_size of a published file; None = not given.

    Raises:
      ConfigError: numbers below 1, or more than two sides.
    """
    for name in ("heads", "decoder_heads"):
        value = FLAGS[name].value
        if value is not None and value < 1:
            raise ConfigError(f"--{name}: {value}; allowed: 1 or more")
    size = integers("image_size", FLAGS.image_size, 1, 1 << 16) if FLAGS.image_size else []
    if len(size) > 2:
        raise ConfigError(f"--image_size: {FLAGS.image_size}; allowed: height,width in pixels")
    return FLAGS.heads, FLAGS.decoder_heads, (size[0], size[-1]) if size else None


def _start(main: Callable[[], None], required: tuple[str, ...], rest: list[str]) -> None:
    if rest:
        raise ConfigError(f"{rest[0]!r}: no flag; allowed: flags alone, --name=value (see --help)")
    for name in required:
        if FLAGS[name].value is None:
            raise ConfigError(f"--{name}: missing; allowed: see --help")
    check_paths()
    if "distributed" in FLAGS:
        join_processes()
    main()


def check_paths() -> None:
    """Expands `~` in every flag and setting that names a place, and asks the stores among these.

    Raises:
      ConfigError: an address that cannot be used there, or a store that does not answer.
    """
    values = FLAGS.flag_values_dict()
    for name, stores in files.FLAGS.items():
        if isinstance(path := values.get(name), str):
            FLAGS[name].value = files.found(path, f"--{name}", stores)
    config: Any = values.get("config")
    if not isinstance(config, ConfigDict):
        return
    for key, stores in files.KEYS.items():
        section, _, last = key.rpartition(".")
        node: Any = config.get(section, config)
        if isinstance(path := node.get(last), str):
            parts = path.split(",") if key == "teacher.path" else [path]
            # files of weights are read on this machine alone, runs on a store too
            places = [files.found(p, key, () if p.endswith(SUFFIXES) else stores) for p in parts]
            node[last] = ",".join(places)


def join_processes() -> None:
    """jax.distributed, before anything touches a device.

    Raises:
      ConfigError: flags that do not go together, or processes that cannot be joined.
    """
    check_processes(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if not FLAGS.coordinator and FLAGS.distributed == "off":
        return
    import jax

    from mimjax.run import native, peers

    # SIGTERM, SIGINT and SIGUSR1 are answered alike, by `peers`
    jax.config.update("jax_enable_preemption_service", False)
    if not FLAGS.debug:
        native.redirect(_coordinator_lost)
    try:
        if FLAGS.coordinator:
            if "cpu" in (getattr(jax.config, "jax_platforms", None) or ""):
                jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        if FLAGS.debug:
            raise
        flag = f"coordinator={FLAGS.coordinator}" if FLAGS.coordinator else "distributed=auto"
        raise ConfigError(
            f"--{flag}: the processes cannot be joined ({_line(error)}); allowed: auto on a TPU "
            "pod or under SLURM, else --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    stopping.install()  # anew: jax has taken SIGTERM
    if jax.process_count() > 1:
        peers.join(jax_store(), jax.process_index(), jax.process_count())


def jax_store():
    """The client of the coordination service, which jax gives no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _coordinator_lost() -> None:
    """Called where jaxlib aborts."""
    if peers := _peers():
        peers.lost("process 0, which the others report to, does not answer")
    stopping.SIGNALS.end_now("error: the processes lost each other at the start", Exit.NO_ANSWER)


def check_processes(coordinator: str | None, count: int, number: int) -> None:
    """The flags of a run of several processes.

    Raises:
      ConfigError: they name no address, no process, or several processes without an address.
    """
    if coordinator is None:
        if (count, number) != (1, 0):
            raise ConfigError(
                f"--coordinator: missing, but --num_processes={count} --process_id={number}; "
                "allowed: host:port of process 0"
            )
    elif not re.fullmatch(r".+:[0-9]+", coordinator):
        raise ConfigError(f"--coordinator: {coordinator!r}; allowed: host:port of process 0")
    elif count < 1:
        raise ConfigError(f"--num_processes: {count}; allowed: 1 or more")
    elif not 0 <= number < count:
        raise ConfigError(f"--process_id: {number}; allowed: 0 to {count - 1} (--num_processes)")


def _guard(main: Callable[[], None]) -> None:
    """Runs `main`; any error ends the program in one line and with its code."""
    from mimjax.run import memory
    from mimjax.train.metrics import NonFiniteError

    try:
        main()
    except stopping.Stopped as stop:
        _stop(stop)
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the newest checkpoint", 130)
    except SystemExit:
        raise
    except BaseException as error:
        if line := _lost(error):
            _fail(line, Exit.NO_ANSWER)
        if "debug" in FLAGS and FLAGS.debug:
            traceback.print_exc()
        if isinstance(error, ConfigError | RunError | PeerError | NonFiniteError):
            _fail(str(error), code_of(error))
        if line := memory.explain(error, FLAGS):
            _fail(line)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written
            _fail(about_file(error))
        backend = isinstance(error, RuntimeError | AssertionError) and no_backend()
        if backend:
            _fail(backend, Exit.REFUSED)
        _fail(unexpected(error))
    if peers := _peers():
        peers.leave(Exit.DONE)


def _peers():
    """The processes of the run, where there are several."""
    module = sys.modules.get("mimjax.run.peers")
    return module.joined() if module else None


def _lost(error: BaseException) -> str:
    """One line, if `error` says that another process of the run is gone; else ""."""
    peers = _peers()
    return peers.explain(error) if peers else ""


def unexpected(error: BaseException) -> str:
    """One line about an error that nobody foresaw; the traceback goes to train.log."""
    stopping.SIGNALS.last_words("".join(traceback.format_exception(error)), screen=False)
    frames = traceback.extract_tb(error.__traceback__)
    # the last of our own, or of the user's: where to look
    frame = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    place = f"{os.path.relpath(frame.filename)}:{frame.lineno}"
    text = _line(error)[:500]
    return f"{type(error).__name__}: {text}{notes} ({place}; --debug shows the traceback)"


def about_file(error: OSError) -> str:
    """One line about a file that cannot be read or written."""
    name, reason = error.filename, error.strerror or _line(error)
    if name is None:
        return f"{reason} ({type(error).__name__}); more with --debug"
    name = os.path.abspath(os.fsdecode(name))
    workdir = FLAGS["workdir"].value if "workdir" in FLAGS else None
    # the workdir, what lies in it, and what it would lie in
    shared = os.path.commonpath([name, os.path.abspath(workdir)]) if workdir else ""
    key = "--workdir: " if workdir and shared in (name, os.path.abspath(workdir)) else ""
    return f"{key}{name}: {reason}; allowed: a place that can be written, with space left"


def no_backend() -> str:
    """Why jax finds no device, in one line; "" if it finds some."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        return (
            f"JAX_PLATFORMS: {getattr(jax.config, 'jax_platforms', None)!r} has no device here "
            f"({_line(error) or 'no such hardware, or jax without its plugin'}); allowed: cpu, "
            "cuda (a GPU and mimjax[gpu]), tpu (mimjax[tpu]), or unset = whatever there is"
        )
    return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _stop(stop: stopping.Stopped) -> NoReturn:
    """The end of a program that was asked to end."""
    _end(str(stop), stop.code, said=stop.said)
    stopping.leave(stop.code)


def _fail(message: str, code: int = Exit.ERROR) -> NoReturn:
    _end(f"error: {message}", code)
    if _peers():
        # At a usual exit jax would wait minutes for the others, which wait for this process.
        stopping.leave(code)
    sys.exit(int(code))


def _end(line: str, code: int, said: bool = False) -> None:
    stopping.SIGNALS.claim()
    if not said:
        stopping.SIGNALS.last_words(line)
    if peers := _peers():
        peers.leave(code, line)
