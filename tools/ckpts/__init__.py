"""Commands under the names that GPT-NeoX's README gives them."""
