"""Checkpoints on disk: format and schema, reading and writing, the lock of a folder.

- To save: `fragments` finds what a rank owns in the engine, `snapshot` copies it, `tensor_files`
  writes it with checksums, `index` lists it (many pieces alike as `runs`), `pruning` deletes old
  checkpoints.
- To load: `verification` checks files, `format` finds the pieces of a parameter, `rectangles`
  copies their parts, `tensor_reader` reads these and compares checksums, `loading` fills the
  engine.
- Others: `opening` and `neox` read the checkpoints of GPT-NeoX too, `schema` defines what files
  must contain, `fit` and `network_comparison` decide whether a checkpoint belongs to a model.
"""
