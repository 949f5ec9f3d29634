"""Block storage: log, groups of extents, maps, snapshots, and the servers in front of them. Usable alone.

A disk is a page table over immutable extents; undrained writes live in a log and are indexed in layers. The room knows
nothing of vms. It promises: what was acknowledged survives the end of this process, what was flushed survives a power
cut, every byte read was checked, and every file format here carries a version (docs/fabric-format.md).
"""
