"""Eight CPU devices for every test, and run-time checks of the annotated array shapes."""

import gc
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
# Most of these tests' time is compilation: these flags make it four times faster. `.ci/run` checks
# the golden numbers once more with the default, which is what users run.
FAST_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",  # one module: its tests run on two cores
]
# jaxlib ends the process at a flag that it does not know: version 0.12 has this one no more
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FAST_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FAST_TO_COMPILE))

# Programs are compiled once and kept between runs, in a folder of the checkout that `make clean`
# removes. What another version of a library or another processor compiled is not read. A test that
# needs a cold compilation sets JAX_ENABLE_COMPILATION_CACHE=false for its processes.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compilation_cache())
    # small ones too: the two workers and the programs that tests start compile the same ones
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

# Before anything of mimjax is imported: these rooms are annotated with shapes.
_HOOK = install_import_hook(
    ["mimjax.masking", "mimjax.losses", "mimjax.models", "mimjax.patches", "mimjax.targets"],
    "beartype.beartype",
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_default_matmul_precision", "highest")


# Files whose tests share nothing: each of these tests may run on any worker.
SPREAD = ("tests/test_golden.py",)
# Files that take long come first, so that no worker waits for the other at the end.
LONG = (
    "tests/train/",
    "tests/test_contract.py",
    "tests/programs/",
    "tests/storage/",
    "tests/torch_io/",
)


def pytest_collection_modifyitems(items):
    def place(item):
        if item.nodeid.startswith(SPREAD):
            return len(LONG) + 1
        return next((i for i, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG))

    items.sort(key=place)


def pytest_collection_finish():
    """Collect garbage seldom: traces make millions of objects, of which few are in cycles.

    With Python's own threshold a tenth of these tests' time is the search for them, most of it
    through modules that stay to the end.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file on one worker, which makes the runs that they share, but for SPREAD."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if nodeid.startswith(SPREAD) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False  # in the order of `pytest_collection_modifyitems`
    return ByFile(config, log)


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


@pytest.fixture(autouse=True, scope="session")
def no_charts():
    """Pages of runs in these processes have no charts, which take longer than small runs train.

    `charts` below gives them back to the tests of pages.
    """
    from mimjax.run import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "chart", lambda *_: "")
        yield


@pytest.fixture(scope="module")
def charts():
    """Charts are drawn in the reports of this file's runs."""
    from mimjax.plots.curves import chart
    from mimjax.run import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "chart", chart)
        yield
