"""How well images are found: rankings by several methods, counted against a ground truth."""
