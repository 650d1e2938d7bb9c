"""Runs lm-eval's tasks on our models; no other package imports lm-eval."""
