"""The gates to the machine: one for subprocesses, one for files, clock and randomness.

Everything here can be replaced in a test. Promises that nothing else in the house starts a process or, in the
fabric, touches a file, a clock or a source of randomness.
"""
