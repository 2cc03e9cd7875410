"""Report of a machine: its facts, the speed of each engine, and possible problems."""
