"""The HTTP API on the inn's unix socket. Decides nothing: it parses requests, calls the services, translates problems.

``services`` says what it calls, ``routes`` where; ``app.create_app`` makes the application, ``server.serve`` runs it.
"""
