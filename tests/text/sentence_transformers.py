"""A model in the place of the library, for the tests: the words of a text, each a fixed vector.

Reads its seed from the model's folder, notes every call in $ENCODED and, after as many texts as
$DIE_AFTER says, dies as by kill -9. Imported only where a test puts this folder on the path.
"""

import os
import pathlib
import signal
import zlib

import numpy as np

WIDTH = 12


class Tensor(np.ndarray):
    """The two methods of a tensor that are needed to read its values."""

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)


class SentenceTransformer:
    def __init__(self, name):
        self.seed = int((pathlib.Path(name) / "seed").read_text())
        self.encoded = 0

    def state_dict(self):
        return {"seed": np.array([self.seed]).view(Tensor)}

    def encode(self, texts, show_progress_bar):
        assert isinstance(texts, list) and not show_progress_bar
        self.encoded += len(texts)
        if self.encoded > int(os.environ.get("DIE_AFTER", 10**9)):
            os.kill(os.getpid(), signal.SIGKILL)
        if "ENCODED" in os.environ:
            with open(os.environ["ENCODED"], "a") as log:
                log.write(f"{len(texts)}\n")
        return np.stack([sum(map(self._word, text.split())) for text in texts])

    def _word(self, word):
        return np.random.default_rng(zlib.crc32(word.encode()) + self.seed).normal(size=WIDTH)
