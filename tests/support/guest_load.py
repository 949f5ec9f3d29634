"""A guest named ``load`` that writes its last disk without end and verifies what it wrote."""

from __future__ import annotations

from live_inn import LiveInn, eventually

WORK = """
d=$(ls /dev/vd? | tail -1)
: > /tmp/verified
(n=0; while [ ! -e /tmp/enough ]; do
    n=$((n + 1)); at=$((n % 24))
    dd if=/dev/urandom of=/tmp/piece bs=64k count=4 2>/dev/null
    dd if=/tmp/piece of=$d bs=256k seek=$at conv=fsync 2>/dev/null || echo write-$n >> /tmp/bad
    echo 3 > /proc/sys/vm/drop_caches
    dd if=$d bs=256k skip=$at count=1 2>/dev/null | cmp -s - /tmp/piece || echo read-$n >> /tmp/bad
    echo $n > /tmp/verified
done) > /dev/null 2>&1 &
"""


def verified(inn: LiveInn) -> int:
    return int(inn.sh("load", "cat /tmp/verified") or 0)


def goes_on(inn: LiveInn) -> None:
    """The guest has verified some more since."""
    before = verified(inn)
    eventually(lambda: verified(inn) > before + 2, "the load goes on")
