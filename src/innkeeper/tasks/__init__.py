"""Long work: every task has steps, progress, a cancel, a cause when it fails, and is safe after a crash.

Touches the state only; what the steps do is given by who registers a kind. Promises that a task that was cut short is
finished or undone at the next start, never left.
"""
