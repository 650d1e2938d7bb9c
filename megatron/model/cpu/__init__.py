"""What only a CPU needs: weights laid out for its products, and products through oneDNN."""
