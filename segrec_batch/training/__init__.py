"""Training: labelled pictures, positions, the SVM, and what cross-validation chooses."""
