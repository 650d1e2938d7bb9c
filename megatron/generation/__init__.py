"""Generating text: batches of token ids, the text they become, records, and a conversation."""
