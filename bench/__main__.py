"""``python -m bench [--quick] [MODULE ...]``: measure, print the table, write ``bench/results/latest.json``."""

from __future__ import annotations

import argparse
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench import MODULES
from bench.report import Context, Row, keep, table
from innkeeper.model.problems import Unavailable
from innkeeper.system import process

TOOLS = (("fio", "--version"), ("qemu-nbd", "--version"), ("restic", "version"), ("borg", "--version"))


def versions() -> str:
    """What is measured with what, a line each."""
    lines = [f"Innkeeper {version('innkeeper')}, Python {platform.python_version()}, Linux {platform.release()}"]
    for command in TOOLS:
        try:
            lines.append(process.run(command).stdout.decode().splitlines()[0])
        except Unavailable:
            lines.append(f"{command[0]} is not installed")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(MODULES)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="short runs with rough figures")
    parser.add_argument("--directory", type=Path, help="where to work: the file system under test")
    options = parser.parse_args()
    unknown = set(options.modules) - set(MODULES)
    if unknown:
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    print(versions(), flush=True)
    rows: list[Row] = []
    for name in options.modules or MODULES:
        with tempfile.TemporaryDirectory(prefix=f"inn-bench-{name}-", dir=options.directory) as work:
            rows += MODULES[name](Context(Path(work), options.quick))
    print(table(rows), flush=True)
    keep(rows)


if __name__ == "__main__":
    main()
