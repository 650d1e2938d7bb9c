"""Every family of models on every layout, to transformers and back."""
