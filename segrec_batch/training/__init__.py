"""Training: labelled images, positions, the SVM, and what cross-validation chooses."""
