"""Run a program: its flags, several processes, errors in one line and exit codes."""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from mimjax import stopping
from mimjax.errors import ConfigError, Exit, PeerError, RunError, UserCodeError, code_of
from mimjax.programs import allocator, parser, processes, usage

# A module of `mimjax.programs`: its docstring is the text of --help, `define_flags()` defines its
# flags, REQUIRED names those that must be given, `main()` runs it when they are parsed.
Program = ModuleType
FLAGS = flags.FLAGS
_NAMES: list[str] = []  # of the flags of the program that runs


def define_base_flags() -> None:
    """Define --debug, which every program has."""
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


def define_run_flags() -> None:
    """Define --config, --workdir and --debug, and the flags of runs of several processes."""
    parser.define()
    flags.DEFINE_string("workdir", None, "Folder of the run, local or gs:// (mimjax[gcs]).")
    define_base_flags()
    processes.define_flags()


def run(program: Program, words: Sequence[str]) -> None:
    """Parse flags, join processes and run a program; end with a code of `errors.Exit`.

    An error is one line; `--debug` shows its traceback.

    Args:
      words: the command line after the program's name.
    """
    allocator.keep()
    stopping.install()
    for name in ("matplotlib", "jax._src.xla_bridge"):  # where fonts lie, which chips are not there
        logging.getLogger(name).setLevel(logging.WARNING)
    with defined(program) as names:
        if {"--help", "-help", "-h", "--helpshort"} & set(words):
            print(usage.text(program, names, FLAGS))
            return
        argv = [usage.command(program), *words]
        main = lambda rest: guard(lambda: start(program, rest[1:]))
        app.run(main, argv=argv, flags_parser=lambda argv: parse(program, argv))


@contextlib.contextmanager
def defined(program: Program) -> Iterator[list[str]]:
    """Define a program's flags in the body, instead of another's, and yield their names."""
    others = {name: FLAGS[name] for name in _NAMES}
    for name in others:
        delattr(FLAGS, name)
    before = set(FLAGS)
    program.define_flags()
    names = [name for name in FLAGS if name not in before]
    _NAMES[:] = names
    try:
        yield list(names)
    finally:
        for name in names:
            delattr(FLAGS, name)
        FLAGS.unparse_flags()
        for name, flag in others.items():
            FLAGS[name] = flag
        _NAMES[:] = others
        if others:
            FLAGS.mark_as_parsed()


def parse(program: Program, argv: Sequence[str]) -> list[str]:
    """Parse a command line; an error ends the program.

    Returns:
      The words that are no flags.
    """
    debug = any(a in ("--debug", "-debug", "--debug=true") for a in argv)
    try:
        return read(program, argv)
    except stopping.Stopped as stop:
        _stop(stop)
    except UserCodeError as error:
        _user_code(error)
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, flags.Error | ConfigError):
            _fail(_line(error), Exit.REFUSED)
        _fail(unexpected(error))


def read(program: Program, argv: Sequence[str]) -> list[str]:
    """Parse a command line, whose first word is the command itself.

    Raises:
      ConfigError, flags.Error: a flag that does not exist, or a value that is not allowed.
      UserCodeError: a user's module fails when it is imported.
    """
    words = list(argv)
    if positional := getattr(program, "POSITIONAL", ""):
        several = isinstance(FLAGS[positional], flags.MultiFlag)
        for number, word in enumerate(words[1 : None if several else 2], 1):
            if word.startswith("-"):
                break
            words[number] = f"--{positional}={word}"
    check_old_flags(words[1:])
    try:
        return parser.read(words)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        close = difflib.get_close_matches(name, _NAMES, 1)
        hint = f" (did you mean --{close[0]}?)" if close else ""
        allowed = ", ".join(f"--{known}" for known in _NAMES)
        raise ConfigError(f"--{name}: no flag{hint}; allowed: {allowed}") from None


def check_old_flags(words: Sequence[str]) -> None:
    """Answer flags that had other names.

    Raises:
      ConfigError: one is given; the line says the name of today.
    """
    if "model" not in FLAGS:
        return
    for number, word in enumerate(words):
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            continue
        follows = "".join(words[number + 1 : number + 2])
        value = value if equals or follows.startswith("-") else follows
        if name == "workdir" and "workdir" not in FLAGS:
            raise ConfigError(f"--workdir: the flag is --model here; allowed: --model={value}")
        if name in ("ema", "noema"):
            average = "ema" if name == "ema" and value.lower() != "false" else "online"
            raise ConfigError(f"--{name}: the flag is --weights; allowed: --weights={average}")
        if name == "weights" and ("weights" not in FLAGS or value not in ("online", "ema")):
            kinds = "online, ema; a workdir or file is " if "weights" in FLAGS else ""
            raise ConfigError(f"--weights: {value!r}; allowed: {kinds}--model={value}")


def integers(flag: str, values: list[str], low: int, high: int, others: str = "") -> list[int]:
    """Return a list flag's numbers, each once.

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


def start(program: Program, rest: list[str]) -> None:
    """Run a program whose flags are parsed.

    Args:
      rest: words that are no flags.

    Raises:
      ConfigError: there are such words, a flag is missing, or a place cannot be used.
    """
    if rest:
        raise ConfigError(
            f"{rest[0]!r}: no flag; allowed: flags alone, --name=value, quoted where the value has "
            "spaces (see --help)"
        )
    for name in program.REQUIRED:
        if FLAGS[name].value is None:
            raise ConfigError(f"--{name}: missing; allowed: see --help")
    check_paths()
    if "distributed" in FLAGS:
        processes.join()
    program.main()


def check_paths() -> None:
    """Expand `~` in every flag and setting that names a place, and ask the stores among these.

    Raises:
      ConfigError: an address that cannot be used there, or a store that does not answer.
    """
    from mimjax.storage import files
    from mimjax.torch_io.read.files import is_weights

    values = FLAGS.flag_values_dict()
    for name, stores in files.FLAGS.items():
        if isinstance(path := values.get(name), str):
            here = () if name == "model" and is_weights(path) else stores
            FLAGS[name].value = files.reachable_path(path, f"--{name}", here)
    config: Any = values.get("config")
    if not isinstance(config, ConfigDict):
        return
    from mimjax.inference import teachers

    for key, stores in (files.KEYS | dict.fromkeys(teachers.paths(config), files.RUNS)).items():
        *sections, last = key.split(".")
        node: Any = config
        for name in sections:
            node = node.get(name, {})
        if isinstance(path := node.get(last), str):
            # files of weights are read on this machine alone, runs on a store too
            node[last] = files.reachable_path(path, key, () if is_weights(path) else stores)


def guard(main: Callable[[], None]) -> None:
    """Run `main`; any error ends the program in one line and with its code."""
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
    except UserCodeError as error:
        _user_code(error)
    except BaseException as error:
        if line := _lost(error):
            _fail(line, Exit.NO_ANSWER)
        if isinstance(error, BrokenPipeError) and stopping.unread():
            line = "stopped: the program that read the output has ended"
            stopping.SIGNALS.last_words(line, screen=False)
            _end(line, Exit.UNREAD, said=True)
            sys.exit(int(Exit.UNREAD))  # quietly, as other programs before `head` do
        if "debug" in FLAGS and FLAGS.debug:
            traceback.print_exc()
        if isinstance(error, ConfigError | RunError | PeerError | NonFiniteError):
            _fail(_by_flag(str(error)), code_of(error))
        if line := memory.explain(error, FLAGS):
            _fail(line)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written
            _fail(about_file(error))
        backend = isinstance(error, RuntimeError | AssertionError) and no_backend()
        if backend:
            _fail(backend, Exit.REFUSED)
        _fail(unexpected(error))
    if peers := processes.joined():
        peers.leave(Exit.DONE)


def _lost(error: BaseException) -> str:
    """One line, if `error` says that another process of the run is gone; else ""."""
    peers = processes.joined()
    return peers.explain(error) if peers else ""


def _by_flag(text: str) -> str:
    """Return an error's text; a workdir is --model's where the program reads a trained thing."""
    if "model" in FLAGS and "workdir" not in FLAGS and text.startswith("--workdir: "):
        return f"--model: {text.removeprefix('--workdir: ')}"
    return text


def _user_code(error: UserCodeError) -> NoReturn:
    """End the program with the traceback of a user's own module."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and f.name != "_file"]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(own)]
    lines += traceback.format_exception_only(cause)
    print("".join(lines), end="", file=sys.stderr)
    _fail(
        f"{error}: {type(cause).__name__} while it was imported; allowed: a module that can be",
        Exit.REFUSED,
    )


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
    flag = next((f for f in ("workdir", "model") if f in FLAGS), "")
    workdir = FLAGS[flag].value if flag else None
    # the workdir, what lies in it, and what it would lie in
    shared = os.path.commonpath([name, os.path.abspath(workdir)]) if workdir else ""
    key = f"--{flag}: " if workdir and shared in (name, os.path.abspath(workdir)) else ""
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
    if processes.joined():
        # At a usual exit jax would wait minutes for the others, which wait for this process.
        stopping.leave(code)
    sys.exit(int(code))


def _end(line: str, code: int, said: bool = False) -> None:
    stopping.SIGNALS.claim()
    if not said:
        stopping.SIGNALS.last_words(line)
    if peers := processes.joined():
        peers.leave(code, line)
