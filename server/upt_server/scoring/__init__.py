"""Answers to all rows of a file: what ``upt-server score`` does. A client of ``upt.v1``."""
