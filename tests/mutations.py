"""Put faults into the code one by one: the golden tests of the repository's own files catch each.

Run by hand, `python tests/mutations.py [--jobs=4] [NAME...]`: each fault is written into a copy of
the files that git knows, where the named tests run without MIMJAX_GOLDEN and one of them must fail.
The table says which. Without faults all of them pass, which is tried first.
"""

import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from faults import FAULTS

ROOT = pathlib.Path(__file__).parent.parent


def node(name):
    """A test of test_golden.py: pinned files have names with a dot."""
    return f"tests/test_golden.py::test_{'pinned' if '.' in name else 'golden'}[{name}]"


def copy(target):
    """The committed files as they are in the working tree."""
    out = subprocess.run(("git", "ls-files"), cwd=ROOT, capture_output=True, text=True, check=True)
    for name in out.stdout.splitlines():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)


def run(folder, names, *words):
    """The first test that fails and what it says; None where all pass.

    Raises:
      RuntimeError: the tests did not run.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MIMJAX_GOLDEN"}
    words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words, *map(node, names))
    out = subprocess.run(
        (sys.executable, *words), cwd=folder, env=environment, capture_output=True, text=True
    )
    if out.returncode == 0:
        return None
    found = re.search(r"^FAILED \S*\[(\S+)\] - (.*)$", out.stdout, re.MULTILINE)
    if out.returncode not in (1, 2) or not found:
        raise RuntimeError(out.stdout[-2000:] + out.stderr[-2000:])
    off = re.search(r"^E +(Mismatched elements.*)$", out.stdout, re.MULTILINE)
    what = re.search(r"^E +(\S+)\n(?:E *\n)*E +Mismatched", out.stdout, re.MULTILINE)
    text = f"{what.group(1)}: {off.group(1)}" if what and off else found.group(2)
    return found.group(1), text


def tried(fault):
    """A row of the table, and whether a test noticed."""
    with tempfile.TemporaryDirectory(prefix="mimjax_fault_") as place:
        folder = pathlib.Path(place)
        copy(folder)
        path = folder / fault.file
        text = path.read_text()
        assert text.count(fault.old) == 1, f"{fault.name}: not once in {fault.file}"
        path.write_text(text.replace(fault.old, fault.new))
        failed = run(folder, fault.tests.split())
    test, said = failed or ("NOT CAUGHT", "")
    return f"| {fault.name} | {fault.file} | {test} | {said[:90]} |", bool(failed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*", help="parts of faults' names; none = all")
    given = parser.parse_args()
    chosen = [f for f in FAULTS if not given.names or any(n in f.name for n in given.names)]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory(prefix="mimjax_compiled_") as place:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", place)
        names = sorted({name for f in chosen for name in f.tests.split()})
        if failed := run(ROOT, names, f"-n{given.jobs}"):
            sys.exit(f"{failed[0]} fails without a fault: {failed[1]}")
        print(f"without a fault: {len(names)} tests pass\n", flush=True)
        print("| fault | in | caught by | as |\n| --- | --- | --- | --- |", flush=True)
        with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
            caught = []
            for row in concurrent.futures.as_completed(pool.submit(tried, f) for f in chosen):
                print(row.result()[0], flush=True)
                caught.append(row.result()[1])
    print(f"\n{len(chosen)} faults, {caught.count(False)} not caught")
    sys.exit(not all(caught))


if __name__ == "__main__":
    main()
