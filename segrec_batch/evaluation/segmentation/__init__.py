"""Segmentation report: quality of methods on labelled images, by class and condition.

study     models and splits applied to labelled images
counts    confusion matrix of each image, method and split
figures   counts → metric values
rivals    methods of the papers' tables
gallery   images of the page
report    settings → Report
"""
