"""What several test modules share; imported as `tests.support.<name>`."""
