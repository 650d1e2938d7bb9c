"""Where text comes from: one module a source."""
