"""Puts faults into the code one by one: the golden tests of the repository's own files catch each.

Run by hand, `python tests/mutations.py [NAME...]`, on committed files: each fault is written into a
copy of them, where the named tests run without MIMJAX_GOLDEN and one of them must fail. The table
says which. Without faults all of them pass, which is tried first.
"""

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


def run(folder, names):
    """The first test that fails and what it says; None where all pass.

    Raises:
      RuntimeError: the tests did not run.
    """
    environment = {k: v for k, v in os.environ.items() if k != "MIMJAX_GOLDEN"}
    words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *map(node, names))
    out = subprocess.run(
        (sys.executable, *words), cwd=folder, env=environment, capture_output=True, text=True
    )
    if out.returncode == 0:
        return None
    found = re.search(r"^FAILED \S*\[(\S+)\] - (.*)$", out.stdout, re.MULTILINE)
    if out.returncode != 1 or not found:
        raise RuntimeError(out.stdout[-2000:] + out.stderr[-2000:])
    said = re.search(r"^E +(Mismatched elements.*|.*Error.*)$", out.stdout, re.MULTILINE)
    what = re.search(r"^E +(\S.*)\n(?:E *\n)*E +Mismatched", out.stdout, re.MULTILINE)
    text = f"{what.group(1)}: {said.group(1)}" if what and said else found.group(2)
    return found.group(1), text


def main(words):
    chosen = [f for f in FAULTS if not words or any(w in f.name for w in words)]
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    missed = []
    with tempfile.TemporaryDirectory(prefix="mimjax_mutations_") as place:
        folder = pathlib.Path(place, "tree")
        copy(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{place}/compiled")
        names = sorted({name for f in chosen for name in f.tests.split()})
        if failed := run(folder, names):
            sys.exit(f"{failed[0]} fails without a fault: {failed[1]}")
        print(
            f"without a fault: {len(names)} tests pass\n\n| fault | in | caught by | as |",
            flush=True,
        )
        print("| --- | --- | --- | --- |")
        for fault in chosen:
            path = folder / fault.file
            text = path.read_text()
            assert text.count(fault.old) == 1, f"{fault.name}: not once in {fault.file}"
            path.write_text(text.replace(fault.old, fault.new))
            failed = run(folder, fault.tests.split()) or ("NOT CAUGHT", "")
            path.write_text(text)
            missed += [fault.name] * (failed[0] == "NOT CAUGHT")
            print(f"| {fault.name} | {fault.file} | {failed[0]} | {failed[1][:90]} |", flush=True)
    print(f"\n{len(chosen)} faults, {len(missed)} not caught")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main(sys.argv[1:])
