"""A sweep: many runs of train.py, planned from lists of values and executed on Ray."""
