"""Generating text: batches of token ids, their text, records, and a conversation."""
