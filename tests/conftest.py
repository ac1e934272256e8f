"""Eight CPU devices for every test, and run-time checks of the annotated array shapes."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Most of these tests' time is compilation: level 0 halves it. `.ci/run` checks the golden numbers
# once more with the default, which is what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Programs that several tests, workers and subprocesses run are compiled once per test session. The
# workers of xdist inherit the folder of the process that started them, which removes it at its end.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="mimjax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook

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
