"""A daemon that dies while it moves a host's network: makes the external switch of ``host_lab`` and kills itself.

``python uplink_victim.py NAMESPACE WORLD DIRECTORY MOMENT CONFIRM_S``; MOMENT is one that ``SwitchRunner`` passes.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from host_lab import Host
from switch_lab import INN_ID

from innkeeper.network.switch import SwitchRunner


def main() -> None:
    namespace, world, directory, moment, confirm_s = sys.argv[1:]

    def passed(now: str) -> None:
        if now == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    runner = SwitchRunner(INN_ID, Path(directory), namespace=namespace, passed=passed)
    host = Host(namespace, world, Path(directory), runner)
    host.do(runner.start([]))
    host.do(runner.ensure(host.policy(confirm_s=float(confirm_s))))
    if moment == "at the end":
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
