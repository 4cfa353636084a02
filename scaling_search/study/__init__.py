"""One experiment: its settings, directions, candidates and the plan of distinct networks."""
