"""What several test modules share. Import as `tests.support.<name>`."""
