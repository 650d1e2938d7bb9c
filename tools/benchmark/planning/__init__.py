"""What a training step would cost on a GPU, read from its operations on torch's meta device."""
