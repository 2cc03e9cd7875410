"""Cost of the backbones."""
