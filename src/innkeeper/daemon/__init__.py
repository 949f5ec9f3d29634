"""Puts the rooms together: one service class per noun, gathered in ``house.House``.

The only place that knows all rooms. Services check requests, record what is desired in the state, and let the rooms
act; what takes time runs as a task whose steps can be repeated and undone.
"""
