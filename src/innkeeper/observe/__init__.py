"""Observation: what is measured, as those who watch want it.

Touches nothing: it turns what the other rooms report into Prometheus' text format. Promises that a metric, once named,
keeps its name, unit and labels.
"""
