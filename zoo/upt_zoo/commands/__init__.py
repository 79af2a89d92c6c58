"""The groups of commands of ``upt-zoo``; ``upt_zoo.cli`` puts them together."""
