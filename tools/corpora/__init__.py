"""Where text comes from: one module per source."""
