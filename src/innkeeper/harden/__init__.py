"""Is this host fit for an inn? Facts are gathered in ``facts`` and ``ports``; ``doctor`` judges them purely.

Touches nothing: it only reads. Promises a remedy with every finding that is not well.
"""
