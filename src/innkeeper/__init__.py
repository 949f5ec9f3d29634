"""Innkeeper: guests, their storage, their network and their protection on ordinary Linux servers."""

__version__ = "0.1.0"
