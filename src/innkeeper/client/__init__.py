"""The typed client of the API. Knows only the model and the socket's path; raises the daemon's problems as they were.

``InnClient`` (``client.inn``) is blocking, for the CLI, scripts and tests.
"""
