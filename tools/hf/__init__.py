"""Hugging Face folders: export, import, verification, upload."""
