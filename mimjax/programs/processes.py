"""The processes of one run: the flags that name them, and how they are joined."""

from __future__ import annotations

import re
import sys
from typing import Any

from absl import flags

from mimjax import stopping
from mimjax.errors import ConfigError, Exit

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the flags of runs of several processes."""
    flags.DEFINE_enum(
        "distributed",
        "off",
        ["off", "auto"],
        "auto: join the processes of a TPU pod or SLURM job, found from the environment.",
    )
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where nothing is found.")
    flags.DEFINE_integer("num_processes", 1, "Number of processes, with --coordinator.")
    flags.DEFINE_integer("process_id", 0, "This process's number, with --coordinator.")


def join() -> None:
    """Join the processes of a run by `jax.distributed`, before anything touches a device.

    Raises:
      ConfigError: flags that do not go together, or processes that cannot be joined.
    """
    check(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
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
        reason = " ".join(str(error).split())
        flag = f"coordinator={FLAGS.coordinator}" if FLAGS.coordinator else "distributed=auto"
        raise ConfigError(
            f"--{flag}: the processes cannot be joined ({reason}); allowed: auto on a TPU "
            "pod or under SLURM, else --coordinator=HOST:PORT --num_processes=N --process_id=I"
        ) from None
    stopping.install()  # anew: jax has taken SIGTERM
    if jax.process_count() > 1:
        peers.join(jax_store(), jax.process_index(), jax.process_count())


def jax_store():
    """Return the client of the coordination service, which jax gives no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _coordinator_lost() -> None:
    """End this process in one line where jaxlib would abort it."""
    if peers := joined():
        peers.lost("process 0, which the others report to, does not answer")
    stopping.SIGNALS.end_now("error: the processes lost each other at the start", Exit.NO_ANSWER)


def check(coordinator: str | None, count: int, number: int) -> None:
    """Check the flags of a run of several processes.

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


def joined() -> Any:
    """Return the processes of the run, None where there is one."""
    module = sys.modules.get("mimjax.run.peers")
    return module.joined() if module else None
