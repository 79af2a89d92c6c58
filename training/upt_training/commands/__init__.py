"""The groups of commands of ``upt-train``; ``upt_training.cli`` puts them together."""
