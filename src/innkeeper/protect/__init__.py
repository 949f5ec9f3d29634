"""Backup repositories: backup, restore, verification, retention and pruning.

May touch a repository's blobs and, through ``fabric.client``, snapshots and disks; knows vms only as documents that
it carries. Promises that a restore point is visible whole or not at all, that damage is always detected and never
restored, and that a restore point can be removed at any time in any order. The format is in
docs/repository-format.md.
"""
