"""Scripts around training; nothing imports them."""
