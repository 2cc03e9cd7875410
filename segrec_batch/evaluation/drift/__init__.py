"""Drift report: comparison of two snapshots of an index.

snapshots    counts of images, failures and coverage, in SQL
golden       golden images: their file, and their recommendations
comparison   settings → counts; limits
figures      counts → metric values
report       settings → Report
"""
