"""The terminal: command-line flags and output streams. Standard library only."""
