"""What only a CPU needs: weights laid out for its products."""
