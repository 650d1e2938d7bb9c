"""One training step: model, optimizer, learning rate and gradients on DeepSpeed's engine."""
