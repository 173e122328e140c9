"""Timings of the program's parts, beside the plain baseline in tests/support/oracle.py."""
