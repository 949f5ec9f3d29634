"""The vocabulary of the house: typed resources, problems, sizes and names.

Touches nothing but memory. Promises that a thing has one name in the model, the API, the CLI and the log line.
"""
