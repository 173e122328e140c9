"""The terminal: command-line flags, output streams and numbers as text. Standard library only."""
