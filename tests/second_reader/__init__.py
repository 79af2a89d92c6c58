"""A second implementation of docs/format.md, written from that page alone.

It imports nothing but Python's standard library (a test looks), so what it reads and computes is
what the page says, not what ``upt_zoo`` does. Whoever changes the format changes the page, and then
this package after the page.
"""
