"""Commands of ``upt-server`` beyond serving and asking."""
