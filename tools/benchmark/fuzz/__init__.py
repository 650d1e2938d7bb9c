"""Damaged and hostile input for everything that the project reads."""
