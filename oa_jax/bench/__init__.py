"""How fast the programs of an experiment are on the device at hand, as ratios within one run."""
