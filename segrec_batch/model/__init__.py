"""The model: backbone, SVM head, pooling, and the bundle that holds them."""
