"""Scripts around training; the packages do not import them."""
