"""How well an index answers: methods are run over labelled queries, counted, and judged."""
