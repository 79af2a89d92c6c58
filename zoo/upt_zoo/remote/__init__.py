"""Stores elsewhere: registries, directories and bundles, and how they are reached."""
