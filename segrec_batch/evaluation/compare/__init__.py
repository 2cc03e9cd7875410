"""Comparison of reports: reports are read and subtracted in `reports`, shown in `report`."""
