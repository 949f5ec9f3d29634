"""The virtual switch: bridges, taps, guards, address translation, DHCP and DNS.

Touches the network namespace it is in (links, nftables, three sysctls, dnsmasq) and the one directory given. Everything
in the kernel carries the inn's id; nothing else is changed. Promises that rules change in one transaction or not at
all, that a port's guards stand before its first frame, and that what others broke is found and repaired.

What the daemon uses:

- ``switch.SwitchRunner(inn_id, directory)``: ``start``, ``repair``, ``ensure``, ``remove``, ``add_port``,
  ``update_port``, ``move_port``, ``remove_port``, ``open_tap``, ``counters``, ``all_counters``, ``leases``, ``routes``,
  ``plan``, ``plan_removal``, ``standing``, ``remove_all``, ``close``
- ``policy.SwitchPolicy``, ``PortPolicy``, ``GuardPolicy``, ``Forward``; ``plan.Standing``, ``SwitchPlan``;
  ``kernel.Report``
- ``addresses.check_subnet``, ``choose_subnet``, ``check_address``, ``choose_address``
- ``foreign.findings``: whose rules beside the inn's drop its traffic, for the doctor

Pure: ``policy``, ``dhcp_policy``, ``ipv6``, ``ruleset``, ``nat``, ``host_input``, ``transaction``, ``plan``,
``addresses``, ``foreign``, ``dhcp.compile_files``.
Acting, in one thread: ``kernel`` on ``nft``, ``links``, ``dhcp.Server``, ``counters``, ``drift``. ``docs/network.md``
says the rest.
"""
