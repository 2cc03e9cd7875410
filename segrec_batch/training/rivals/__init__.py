"""Methods that the papers compare with the linear SVM."""
