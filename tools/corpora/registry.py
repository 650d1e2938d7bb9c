"""The registry of corpora that `prepare_data.py` knows, by name."""

from tools.corpora.corpus import Corpus
from tools.corpora.hub import CommonCorpus, CommonPile
from tools.corpora.local import LocalCorpus
from tools.corpora.this_machine import ThisMachine

DATA_DOWNLOADERS: dict[str, type[Corpus]] = {
    "this_machine": ThisMachine,
    "local": LocalCorpus,
    "common_pile": CommonPile,
    "common_corpus": CommonCorpus,
}
