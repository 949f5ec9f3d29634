"""The handshake: what the protocol asks of a server, and what it owes to clients that break it."""

from __future__ import annotations

import os
import struct

import pytest
from nbd_lab import MIB, NbdLab, RawClient

from innkeeper.fabric.nbd import protocol as p, server


def go_data(name: bytes, infos: bytes = bytes(2)) -> bytes:
    return struct.pack(">I", len(name)) + name + infos


def only(replies: list[tuple[int, bytes]]) -> int:
    assert len(replies) == 1
    return replies[0][0]


def test_the_export_says_what_it_can_do(lab: NbdLab) -> None:
    export = lab.disk(3 * MIB)
    with lab.connect(export) as client:
        assert client.size_bytes == 3 * MIB
        assert client.block_sizes == (4096, 65536, 32 * MIB)
        can = p.TransmissionFlag(client.flags)
        assert p.TransmissionFlag.SEND_FLUSH | p.TransmissionFlag.SEND_FUA in can
        assert p.TransmissionFlag.SEND_TRIM | p.TransmissionFlag.SEND_WRITE_ZEROES in can
        assert p.TransmissionFlag.CAN_MULTI_CONN in can
        assert p.TransmissionFlag.READ_ONLY not in can


def test_a_size_that_is_no_multiple_of_4_kib_has_sectors_of_512(lab: NbdLab) -> None:
    with lab.connect(lab.disk(MIB + 512)) as client:
        assert client.size_bytes == MIB + 512
        assert client.block_sizes[0] == 512


def test_a_reader_is_told_so_and_may_not_write(lab: NbdLab) -> None:
    with lab.connect(lab.disk(MIB, role="reader")) as client:
        assert client.flags & p.TransmissionFlag.READ_ONLY
        assert client.ask(p.Command.WRITE, 0, data=bytes(4096)).error == p.NbdError.EPERM
        assert client.ask(p.Command.TRIM, 0, 4096).error == p.NbdError.EPERM
        assert client.ask(p.Command.WRITE_ZEROES, 0, 4096).error == p.NbdError.EPERM
        assert client.ask(p.Command.READ, 0, 4096).data == bytes(4096)


def test_list_tells_no_name(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    with lab.connect() as client:
        [(kind, text)] = client.option(p.Option.LIST)
        assert kind == p.Reply.ERR_POLICY
        assert export.encode() not in text


def test_an_unknown_export_is_refused_and_the_client_may_go_on(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    with lab.connect() as client:
        for name in (b"", b"no-such", b"../pool", "ß".encode(), b"\xff\xfe", b"x" * 4097, b"0" * 36):
            assert only(client.option(p.Option.GO, go_data(name))) in (p.Reply.ERR_UNKNOWN, p.Reply.ERR_INVALID)
        client.go(export)
        assert client.ask(p.Command.READ, 0, 512).error == 0


def test_another_users_export_is_refused(lab: NbdLab) -> None:
    export = lab.disk(MIB, uid=os.geteuid() + 1)
    with lab.connect() as client:
        assert only(client.option(p.Option.GO, go_data(export.encode()))) == p.Reply.ERR_POLICY
        assert only(client.option(p.Option.INFO, go_data(export.encode()))) == p.Reply.ERR_POLICY
    with lab.connect() as client:
        name = export.encode()
        client.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, p.Option.EXPORT_NAME, len(name)) + name)
        assert client.closed()


def test_the_old_way_to_choose_an_export(lab: NbdLab) -> None:
    name = lab.disk(MIB)
    for flags, padding in ((3, 0), (1, 124)):
        client = RawClient(lab.socket_path)
        try:
            client.greet(flags)
            client.export_name(name, padding=padding)
            assert client.size_bytes == MIB
            assert client.ask(p.Command.WRITE, 0, data=b"x" * 512).error == 0
            assert client.ask(p.Command.READ, 0, 512).data == b"x" * 512
        finally:
            client.close()


def test_info_describes_and_lets_the_client_go_on(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    with lab.connect() as client:
        replies = client.option(p.Option.INFO, go_data(export.encode()))
        assert [kind for kind, _ in replies] == [p.Reply.INFO, p.Reply.INFO, p.Reply.ACK]
        client.go(export)


def test_meta_contexts(lab: NbdLab) -> None:
    name = lab.disk(MIB).encode()

    def query(*wanted: bytes) -> bytes:
        texts = b"".join(struct.pack(">I", len(each)) + each for each in wanted)
        return struct.pack(">I", len(name)) + name + struct.pack(">I", len(wanted)) + texts

    with lab.connect() as client:
        assert only(client.option(p.Option.SET_META_CONTEXT, query(b"base:allocation"))) == p.Reply.ERR_INVALID
        client.option(p.Option.STRUCTURED_REPLY)
        for listed in (query(), query(b"base:"), query(b"base:allocation")):
            assert len(client.option(p.Option.LIST_META_CONTEXT, listed)) == 2
        assert len(client.option(p.Option.SET_META_CONTEXT, query(b"base:"))) == 1
        assert len(client.option(p.Option.SET_META_CONTEXT, query(b"qemu:dirty-bitmap:x"))) == 1
        assert len(client.option(p.Option.SET_META_CONTEXT, query(b"x:y", b"base:allocation"))) == 2


def test_block_status_without_its_context_is_refused(lab: NbdLab) -> None:
    with lab.connect(lab.disk(MIB), context=False) as client:
        assert client.ask(p.Command.BLOCK_STATUS, 0, 4096).error == p.NbdError.EINVAL


def test_a_choice_of_contexts_that_fails_leaves_none_chosen(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    with lab.connect() as client:
        client.prepare(export, structured=True, context=True)
        assert only(client.option(p.Option.SET_META_CONTEXT, b"\0\0")) == p.Reply.ERR_INVALID
        client.go(export, structured=False)
        client.structured = True
        assert client.ask(p.Command.BLOCK_STATUS, 0, 4096).error == p.NbdError.EINVAL


@pytest.mark.parametrize(
    ("option", "data", "answer"),
    [
        (99, b"", p.Reply.ERR_UNSUP),
        (5, b"", p.Reply.ERR_UNSUP),  # STARTTLS
        (p.Option.STRUCTURED_REPLY, b"x", p.Reply.ERR_INVALID),
        (p.Option.GO, b"", p.Reply.ERR_INVALID),
        (p.Option.GO, b"\xff\xff\xff\xff", p.Reply.ERR_INVALID),
        (p.Option.GO, go_data(b"x", b"\0\1"), p.Reply.ERR_INVALID),
        (p.Option.GO, go_data(b"x", b"\0\0more"), p.Reply.ERR_INVALID),
        (p.Option.GO, bytes(p.MAX_OPTION_BYTES + 1), p.Reply.ERR_TOO_BIG),
        (99, bytes(1 << 20), p.Reply.ERR_TOO_BIG),
    ],
)
def test_odd_options_are_answered_and_forgotten(lab: NbdLab, option: int, data: bytes, answer: int) -> None:
    export = lab.disk(MIB)
    with lab.connect() as client:
        assert only(client.option(option, data)) == answer
        client.go(export)
        assert client.ask(p.Command.READ, 0, 512).error == 0


def test_a_client_that_talks_nonsense_is_left(lab: NbdLab) -> None:
    with lab.connect() as client:
        client.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert client.closed()


@pytest.mark.parametrize("flags", [0, 2, 1 << 7 | 1, 0xFFFFFFFF])
def test_unknown_handshake_flags_end_the_connection(lab: NbdLab, flags: int) -> None:
    client = RawClient(lab.socket_path)
    client.greet(flags)
    assert client.closed()
    client.close()


def test_abort_is_acknowledged(lab: NbdLab) -> None:
    with lab.connect() as client:
        assert client.option(p.Option.ABORT) == [(p.Reply.ACK, b"")]
        assert client.closed()


def test_idle_handshakes_do_not_keep_others_out(lab: NbdLab) -> None:
    """More connections that say nothing than one user may have: the first ones stand, the rest are closed."""
    export = lab.disk(MIB)
    with lab.connect(export) as served:
        idle = [RawClient(lab.socket_path) for _ in range(server.MAX_HANDSHAKES + 8)]
        turned_away = 0
        for client in idle:
            try:
                client.greet()
            except (ConnectionError, BrokenPipeError):
                turned_away += 1
        assert turned_away == 8
        assert served.ask(p.Command.READ, 0, 4096).error == 0
        for client in idle:
            client.close()


def test_connections_of_an_attachment_are_bounded(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    clients = []
    for _ in range(server.MAX_CONNECTIONS):
        context = lab.connect(export)
        clients.append((context, context.__enter__()))
    try:
        with lab.connect(export) as one_more:
            assert one_more.closed()
        assert all(client.ask(p.Command.READ, 0, 4096).error == 0 for _, client in clients)
    finally:
        for context, _ in clients:
            context.__exit__(None, None, None)


def test_an_ended_attachment_has_no_connections(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    with lab.connect(export) as client:
        assert client.ask(p.Command.WRITE, 0, data=b"a" * 4096).error == 0
        lab.pool.detach(export)
        assert client.ask(p.Command.WRITE, 0, data=b"b" * 4096).error
        lab.loop.call_soon_threadsafe(lab.server.drop, export)
        assert client.closed()
    with lab.connect() as client:
        assert only(client.option(p.Option.GO, go_data(export.encode()))) == p.Reply.ERR_UNKNOWN
