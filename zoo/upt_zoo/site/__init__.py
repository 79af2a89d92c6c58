"""The web page of a zoo: static assets, and the adapters as JSON documents beside them.

``upt-zoo site`` writes both into a directory; ``upt-server`` serves the same assets and makes the
documents when they are asked for. It imports neither torch nor the server.
"""
