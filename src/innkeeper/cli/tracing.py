"""``inn port trace`` and ``inn switch simulate``: what decides about packets, without sending any."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import output
from innkeeper.cli.options import InnCommand, Ref
from innkeeper.cli.output import Column
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model.acl import WITH_PORTS, protocol_number
from innkeeper.model.tracing import PacketAsk, ReachAsk, Trace, TraceStep

_CLIENT_PORT = 40_000


def _show(session: Session, found: Trace, said: str) -> None:
    if session.format == "json":
        session.show(found)
        return
    columns: list[Column[TraceStep]] = [
        Column("where", lambda step: step.where),
        Column("verdict", lambda step: ("passes" if step.allowed else "dropped") + (", logged" if step.logged else "")),
        Column("because", lambda step: step.line),
    ]
    output.table(columns, found.steps)
    session.say(said)


@click.command("trace", cls=InnCommand)
@click.argument("nic", type=Ref("nics"))
@click.argument("direction", type=click.Choice(["in", "out"]))
@click.option("--remote", required=True, help="The address of the other side.")
@click.option("--local", help="The vm's. [default: the card's address]")
@click.option("--protocol", default="tcp", show_default=True, help="tcp, udp, icmp, icmpv6, sctp or a number.")
@click.option("--local-port", type=click.IntRange(0, 65_535), help="[default: 40000 for out]")
@click.option("--remote-port", type=click.IntRange(0, 65_535), help="[default: 40000 for in]")
@click.option("--remote-mac", help="The other side's mac, where entries name macs.")
@click.option("--icmp-type", type=click.IntRange(0, 255), help="[default: an echo request]")
@click.option("--fragment", is_flag=True, help="A later fragment, which shows no ports.")
@pass_session
def trace(session: Session, /, nic: str, **options: Any) -> None:
    """Which rule decides about a packet: inn port trace web-0 in --remote 192.0.2.7 --local-port 443."""
    asks = not options["fragment"]
    try:
        asks = asks and protocol_number(options["protocol"]) in WITH_PORTS
    except ValueError:
        asks = False  # the request says what is wrong with it
    client = "remote_port" if options["direction"] == "in" else "local_port"
    if asks and options[client] is None:
        options[client] = _CLIENT_PORT
    found = session.client.nics.trace(nic, request(PacketAsk, **options))
    _show(session, found, f"{nic}: it {'passes' if found.allowed else 'is dropped'}")


def _wanted(text: str) -> dict[str, Any]:
    """``tcp/443`` or ``icmp`` as members of a request."""
    protocol, slash, port = text.partition("/")
    if slash and not port.isdigit():
        raise click.BadParameter(f"{text!r} is not like tcp/443 or icmp", param_hint="WHAT")
    return {"protocol": protocol, "port": int(port) if slash else None}


@click.command("simulate", cls=InnCommand)
@click.argument("switch", type=Ref("switches"))
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("what", metavar="PROTOCOL[/PORT]")
@pass_session
def simulate(session: Session, switch: str, source: str, target: str, what: str) -> None:
    """Whether one vm, card or address reaches another, and why not: inn switch simulate lan web db tcp/5432."""
    wish = request(ReachAsk, source=source, target=target, **_wanted(what))
    found = session.client.switches.simulate(switch, wish)
    _show(session, found, f"{source} {'reaches' if found.allowed else 'does not reach'} {target} with {what}")
