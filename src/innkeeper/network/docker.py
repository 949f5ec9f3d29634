"""Letting guests pass Docker's rules, where the administrator consents: one tagged rule in DOCKER-USER.

Docker drops what the host forwards for others, and promises to leave the chain DOCKER-USER to them. The rule there
leads to a chain of the inn's own; containers stay apart from guests as Docker has it. Blocking; in the network
namespace of its thread. ``iptables`` is used because Docker's rules are its, in nftables or in its own older form.
"""

from __future__ import annotations

import shutil

from innkeeper.network.ruleset import BRIDGE_PREFIX
from innkeeper.network.tenant import UPLINK_PREFIX
from innkeeper.system import process

USER_CHAIN = "DOCKER-USER"
CHAIN_PREFIX = "INNKEEPER-"
TOOLS = ("iptables", "ip6tables")
_WAIT = ("-w", "5")


def chain_rules(inn_id: str) -> list[str]:
    """The inn's chain as ``iptables -S`` prints it: for bridges, and for the uplinks of tenants' namespaces. Pure."""
    chain = CHAIN_PREFIX + inn_id
    rules = [f"-N {chain}"]
    for guests in (f"{BRIDGE_PREFIX}{inn_id}+", f"{UPLINK_PREFIX}{inn_id}+"):
        rules += [
            f"-A {chain} -i {guests} -o docker+ -j RETURN",
            f"-A {chain} -i {guests} -o br-+ -j RETURN",
            f"-A {chain} -i {guests} -j ACCEPT",
            f"-A {chain} -o {guests} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
        ]
    return rules


def jump(inn_id: str) -> str:
    """The tagged rule as ``iptables -S`` prints it. Pure."""
    return f'-A {USER_CHAIN} -m comment --comment "innkeeper {inn_id}" -j {CHAIN_PREFIX}{inn_id}'


class Docker:
    """The consent of one inn: ``allowed`` or not. Raises ``Failed`` (``tool.failed``) where iptables refuses."""

    def __init__(self, inn_id: str) -> None:
        self._inn_id = inn_id
        self.allowed = False

    def ensure(self) -> list[str]:
        """Put the rule where Docker's chain is, or take it away; returns what was done."""
        done = []
        for tool in TOOLS:
            user, own = _listed(tool, USER_CHAIN), _listed(tool, CHAIN_PREFIX + self._inn_id)
            if self.allowed and user and (jump(self._inn_id) not in user or own != chain_rules(self._inn_id)):
                _restore(tool, self._putting(jumps=jump(self._inn_id) in user))
                done.append(f"let guests pass Docker's rules ({tool} {USER_CHAIN})")
            elif own and not self.allowed:
                _restore(tool, self._taking(user.count(jump(self._inn_id))))
                done.append(f"take the inn's rule out of Docker's ({tool} {USER_CHAIN})")
        return done

    def remove(self) -> None:
        """Leave nothing."""
        allowed, self.allowed = self.allowed, False
        try:
            self.ensure()
        finally:
            self.allowed = allowed

    def _putting(self, *, jumps: bool) -> list[str]:
        lines = [f":{CHAIN_PREFIX}{self._inn_id} - [0:0]", *chain_rules(self._inn_id)[1:]]
        return lines if jumps else [*lines, jump(self._inn_id).replace("-A", "-I", 1)]

    def _taking(self, jumps: int) -> list[str]:
        chain = CHAIN_PREFIX + self._inn_id
        return [*[jump(self._inn_id).replace("-A", "-D", 1)] * jumps, f"-F {chain}", f"-X {chain}"]


def _listed(tool: str, chain: str) -> list[str]:
    """The rules of a chain; empty when there is none, or no such tool."""
    if shutil.which(tool, path=process.BASE_ENVIRONMENT["PATH"]) is None:
        return []
    ended = process.run([tool, *_WAIT, "-S", chain], check=False)
    return ended.stdout.decode(errors="replace").splitlines() if ended.returncode == 0 else []


def _restore(tool: str, lines: list[str]) -> None:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    process.run([f"{tool}-restore", "--noflush", *_WAIT], stdin=text.encode())
