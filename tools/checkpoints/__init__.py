"""Reading and writing checkpoints in one process, for the conversion commands."""
