fill
publish sst2:1.1.0
