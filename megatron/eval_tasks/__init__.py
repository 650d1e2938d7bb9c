"""Tasks of lm-eval on our models; the only package that imports lm-eval."""
