"""Training: sampling of positions, linear SVM, cross-validation, rival methods."""
