"""The one executable, ``inn``: nouns and verbs over the client, and what starts and ends an inn.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage; ``inn vm exec`` ends with
the command's own.
"""
