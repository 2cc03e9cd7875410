"""Categories report: one label for each image from its feature (Abdullah 2026, section 4).

study     labelled features of an index, split; methods fitted and applied
figures   counts → metric values
report    settings → Report
"""
