"""The server as replicas of Ray Serve. Nothing else in ``upt_server`` knows Ray."""
