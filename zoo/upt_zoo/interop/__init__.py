"""Checkpoints of other libraries: read into a spec and tensors, and written from them.

Each library's module is a pure mapping between its configuration and tensors and ours, in numpy;
``checkpoint`` alone touches files. What cannot be said exactly on the other side is refused.
"""
