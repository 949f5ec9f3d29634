"""``python -m innkeeper`` is ``inn``."""

from __future__ import annotations

from innkeeper.cli.main import main

main()
