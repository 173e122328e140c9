"""Evaluation of a policy: playing its skills, reporting on them, composing them, imitating with them."""
