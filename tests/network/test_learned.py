"""What is decided about learned addresses: whatever servers say, nobody is locked out, and nothing holds for ever."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from innkeeper.network import learned
from innkeeper.network.learned import ASKED_S, GRACE_S, MOST_ASKED, MOST_OF_A_CARD, Asked, Lease, Leases

MAC, OTHER_MAC = "52:54:00:00:00:01", "52:54:00:00:00:02"


def lease(address: str, now_s: float, lease_s: int | None = 600, client: str = "", mac: str = MAC) -> Lease:
    return Lease(address, mac, client, now_s, lease_s, None if lease_s is None else now_s + lease_s)


def addresses(held: Leases, now_s: float) -> list[str]:
    return [one.address for one in learned.current(held, now_s)]


def test_a_renewal_moves_the_end_and_nothing_else() -> None:
    held = learned.given((), lease("192.0.2.5", 0), 0)
    held = learned.given(held, lease("192.0.2.5", 300), 300)
    assert held == (Lease("192.0.2.5", MAC, "", 0, 600, 900),)
    assert addresses(held, 900 + GRACE_S - 1) == ["192.0.2.5"] and addresses(held, 900 + GRACE_S) == []
    assert learned.next_end_s(held) == 900 + GRACE_S


def test_a_new_address_holds_at_once_and_the_old_one_for_a_grace() -> None:
    for lease_s in (600, None):
        held = learned.given((), lease("192.0.2.5", 0, lease_s), 0)
        held = learned.given(held, lease("192.0.2.6", 100), 100)
        assert addresses(held, 100) == ["192.0.2.6", "192.0.2.5"]
        assert addresses(held, 100 + GRACE_S) == ["192.0.2.6"]
        assert addresses(learned.heard_again(held, 110), 110 + GRACE_S) == ["192.0.2.6"]


def test_another_client_of_the_card_keeps_its_address() -> None:
    held = learned.given((), lease("192.0.2.5", 0, client="01"), 0)
    held = learned.given(held, lease("192.0.2.6", 0, client="02"), 0)
    held = learned.given(held, lease("192.0.2.7", 0, mac=OTHER_MAC, client="01"), 0)
    held = learned.given(held, lease("2001:db8::7", 0), 0)
    assert set(addresses(held, 500)) == {"192.0.2.5", "192.0.2.6", "192.0.2.7", "2001:db8::7"}
    held = learned.refused(held, MAC, "01", 500)
    assert set(addresses(held, 500 + GRACE_S)) == {"192.0.2.6", "192.0.2.7", "2001:db8::7"}


def test_what_is_given_for_no_time_or_to_another_is_over() -> None:
    held = learned.given((), lease("2001:db8::7", 0), 0)
    for ended in (learned.given(held, lease("2001:db8::7", 10, 0), 10), learned.lost(held, "2001:db8::7", 10)):
        assert addresses(ended, 10) == ["2001:db8::7"] and addresses(ended, 10 + GRACE_S) == []
    assert learned.given((), lease("2001:db8::7", 0, 0), 0) == ()


def test_where_renewals_may_have_been_missed_a_lease_holds_once_more() -> None:
    held = learned.given((), lease("192.0.2.5", 0), 0)
    again = learned.heard_again(held, 10_000)
    assert addresses(again, 10_600) == ["192.0.2.5"] and addresses(again, 10_600 + GRACE_S) == []
    assert learned.heard_again(held, 0) == held
    forever = learned.given((), lease("192.0.2.5", 0, None), 0)
    assert learned.heard_again(forever, 10) == forever and learned.next_end_s(forever) is None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["given", "refused", "lost", "again"]),
        st.integers(1, 30).map(lambda number: f"192.0.2.{number}" if number < 25 else f"2001:db8::{number}"),
        st.sampled_from([None, 0, 1, 600, 86_400]),
        st.sampled_from(["", "01"]),
        st.floats(0, 2_000),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=300)
def test_whatever_servers_say(events: list[tuple[str, str, int | None, str, float]]) -> None:
    held: Leases = ()
    now_s = 0.0
    for kind, address, lease_s, client, passed_s in events:
        now_s += passed_s
        held, before = learned.current(held, now_s), learned.current(held, now_s)
        if kind == "given":
            held = learned.given(held, lease(address, now_s, lease_s, client), now_s)
            if lease_s != 0:
                assert held[0].address == address, "what is new holds at once"
        elif kind == "refused":
            held = learned.refused(held, MAC, client, now_s)
        elif kind == "lost":
            held = learned.lost(held, address, now_s)
        else:
            held = learned.heard_again(held, now_s)
        named = [one.address for one in held]
        assert len(named) == len(set(named)) <= MOST_OF_A_CARD
        if len(before) < MOST_OF_A_CARD:
            for one in before:
                if one.until_s is None or one.until_s > now_s + GRACE_S:
                    assert one.address in addresses(held, now_s + GRACE_S - 1), "nothing that held goes without a grace"
        assert {one.address for one in held} <= {one.address for one in before} | {address}
    ends = [one.until_s for one in held if one.until_s is not None]
    assert learned.next_end_s(held) == min(ends, default=None)


def test_only_what_was_asked_is_answered() -> None:
    asked = Asked()
    asked.note(MAC, 4, 7, "01", 0)
    assert asked.client(MAC, 4, 7, ASKED_S) == "01"
    assert asked.client(MAC, 4, 7, ASKED_S + 1) is None, "too late"
    assert asked.client(MAC, 4, 8, 0) is None and asked.client(MAC, 6, 7, 0) is None
    assert asked.client(OTHER_MAC, 4, 7, 0) is None
    for number in range(100, 100 + MOST_ASKED):
        asked.note(MAC, 4, number, "", 1)
    assert asked.client(MAC, 4, 7, 1) is None and asked.client(MAC, 4, 100, 1) == ""
    asked.keep([OTHER_MAC])
    assert asked.client(MAC, 4, 100, 1) is None
