"""The segmentation report: how well methods segment labelled images, and where they are weak.

counts      images judged: a confusion matrix each
judge       counts → measures; leaks are contrasts of splits
weakness    the same by size of the object, brightness, number of classes
coverage    σ̂ against σ: errors and calibration
splits      which images are trained on, which are judged
study       a model, or fits for each split, applied to the judged images
tables, plates, page    what the page shows
run         settings → Report
"""
