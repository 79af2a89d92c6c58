fill
upt-zoo tag sst2:1.0.1 stable
