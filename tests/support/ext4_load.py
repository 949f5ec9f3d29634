"""A load of files in a guest, and what has to be found of it on the disk afterwards.

The guest (Perl on ext4) writes file after file, has each and its directory synced, and only then notes its number. A
file's content follows from its round and number, so that what survived is judged on the host, from a copy of the disk:
every file that was noted is there and whole, ``latest`` (put in place by renaming) is whole and not older, and
``e2fsck`` finds nothing after the journal was replayed.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

KEPT = 40
"""Files of a round; older ones are removed, which the file system passes on as trims."""

SCRIPT = r"""
use strict; use IO::Handle;
my ($round, $kept) = @ARGV;
my $dir = "/mnt/r$round";
open(my $noted, '>>', '/run/noted') or die; $noted->autoflush(1);
sub put { my ($name, $n) = @_;
    open(my $file, '>', "$dir/$name") or die "open: $!";
    print $file sprintf("%07d %07d\n", $round, $n) x (1 + $n * 7919 % 6000) or die "write: $!";
    $file->flush or die "flush: $!"; $file->sync or die "sync: $!"; close($file) or die "close: $!";
}
sub sync_dir { open(my $d, '<', $dir) or die; $d->sync or die "sync: $!"; }
for (my $n = 1; ! -e '/run/enough'; $n++) {
    put("f$n", $n);
    if ($n % 4 == 0) { put('new', $n); rename("$dir/new", "$dir/latest") or die; }
    sync_dir();
    print $noted "$n\n";
    unlink("$dir/f" . ($n - $kept)) if $n > $kept;
}
print $noted "done\n";
"""


def content(round: int, number: int) -> bytes:
    return b"%07d %07d\n" % (round, number) * (1 + number * 7919 % 6000)


@dataclass
class Found:
    """The files of a disk, by path from its root."""

    files: dict[str, bytes] = field(default_factory=dict)


def read_disk(uri: str, directory: Path) -> Found:
    """Copy a disk, replay its journal, check it, read all its files."""
    image, out = directory / "copy.raw", directory / "files"
    run("nbdcopy", uri, str(image))
    run("e2fsck", "-p", "-E", "journal_only", str(image), allowed=(0, 1))
    run("e2fsck", "-f", "-n", str(image))
    out.mkdir()
    run("debugfs", "-R", f"rdump / {out}", str(image))
    found = Found({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    run("rm", "-r", str(image), str(out))
    return found


def run(*command: str, allowed: tuple[int, ...] = (0,)) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode in allowed, f"{' '.join(command)}: {ended.returncode}\n{ended.stdout}{ended.stderr}"


def check_round(found: Found, round: int, noted: int) -> int:
    """Everything noted is there; how many files were compared."""
    files = {name.partition("/")[2]: data for name, data in found.files.items() if name.startswith(f"r{round}/")}
    numbers = [int(name[1:]) for name in files if name.startswith("f")]
    last = max(numbers, default=0)
    assert last >= noted, f"round {round}: file {noted} was noted, the last one found is {last}"
    compared = 0
    for number in range(max(1, last - KEPT + 1), noted + 1):
        assert files.get(f"f{number}") == content(round, number), f"round {round}: file {number} of {noted} noted"
        compared += 1
    if noted >= 4:
        latest = int(files["latest"].split(None, 2)[1])
        assert latest >= noted - noted % 4
        assert files["latest"] == content(round, latest)
        compared += 1
    return compared
