"""What an adapter is, and where it is kept.

Importing this package loads no torch; the maths lives in ``upt_zoo.nn``.
"""
