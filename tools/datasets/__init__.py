"""From text to tokenized datasets."""
