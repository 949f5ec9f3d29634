"""Documents with revisions, compare-and-swap and watch: SQLite here, etcd in a cluster later.

Touches one database file. Promises that a document is replaced only by who read its latest revision, that names are
unique in their kind, and that a watcher misses no change.
"""
