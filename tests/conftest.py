"""Eight CPU devices for every test, and run-time checks of the annotated array shapes."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform


def compilation_cache():
    """Return the folder of compiled programs for these versions on this processor."""
    cpu = pathlib.Path("/proc/cpuinfo")
    about = cpu.read_text().splitlines() if cpu.exists() else []  # Linux
    flags = [line for line in about if line.startswith(("model name", "flags"))][:2]
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")]
    what = [*versions, platform.python_version(), platform.machine(), *flags]
    key = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled" / key


os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of these tests' time is compilation: level 0 halves it. `.ci/run` checks the golden numbers
# once more with the default, which is what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Programs are compiled once and kept between runs, in a folder of the checkout that `make clean`
# removes. What another version of a library or another processor compiled is not read. A test that
# needs a cold compilation sets JAX_ENABLE_COMPILATION_CACHE=false for its processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook  # noqa: E402

# Before anything of mimjax is imported: these rooms are annotated with shapes.
_HOOK = install_import_hook(
    ["mimjax.masking", "mimjax.losses", "mimjax.models", "mimjax.patches", "mimjax.targets"],
    "beartype.beartype",
)

import jax  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


def pytest_terminal_summary(terminalreporter):
    """What tests recorded, from every worker: golden files, the table of mistakes and answers."""
    passed = terminalreporter.stats.get("passed", [])
    recorded = [pair for report in passed for pair in report.user_properties]
    for text in [text for key, text in recorded if key == "golden"]:
        terminalreporter.write_line(f"golden numbers: {text}")
    rows = [text for key, text in recorded if key == "mistake"]
    if rows:
        terminalreporter.section(f"{len(rows)} mistakes, each answered in one line")
    for text in rows:
        name, _, line = text.partition(": error: ")
        terminalreporter.write_line(f"{name:32} {line[:160]}")
