"""A training run: how it starts, what its loop does, how it is saved, stopped and resumed."""
