"""The TFDS builder `oa_pairs`: one configuration a data set, one example a user, no TensorFlow.

    builder = OaPairs(config="beauty_elec", data_dir=DIR)
    builder.download_and_prepare(download_config=DownloadConfig(manual_dir=RAW))
    builder.as_data_source("train")[7]       # user 7

`oa_jax.data.prepare` runs it and adds what training and the text tools read.
"""

from __future__ import annotations

import importlib

import numpy as np
import tensorflow_datasets as tfds

from oa_jax.data import catalogue
from oa_jax.data.built import Built
from oa_jax.data.prepared import BUILDER, VERSION
from oa_jax.data.raw import Reading
from oa_jax.errors import UserError


def build(name: str, raw_dir, reading: Reading) -> tuple[Built, catalogue.Source, list]:
    """Events of a data set from the first of its sources whose files are below raw_dir.

    -> what was built, its source and the paths of its files. Raises UserError naming the missing
    file and its page, and what is wrong in a file.
    """
    data_set = catalogue.SETS[name]
    for source in data_set.sources:
        paths = catalogue.find(source, raw_dir)
        if paths:
            module, function = source.build.split(".")
            module = importlib.import_module(f"oa_jax.data.{module}")
            return getattr(module, function)(paths, reading, name, **source.options), source, paths
    raise UserError(f"{name}: {what_is_missing(data_set, raw_dir)}")


def what_is_missing(data_set, raw_dir) -> str:
    """One line: the source nearest to complete, the file that it lacks, and where that is."""
    lacking = [catalogue.missing(source, raw_dir) for source in data_set.sources]
    best = min(range(len(lacking)), key=lambda k: len(lacking[k]))
    file, more = lacking[best][0], len(lacking[best]) - 1
    size = f" ({file.size})" if file.size else ""
    others = f" and {more} more" if more else ""
    return (
        f"found no {file.name}{size}{others} in a folder below {raw_dir}, plain or .gz: "
        f"expected the files of {' or '.join(s.kind for s in data_set.sources)}; see {file.page}"
    )


class OaPairs(tfds.core.GeneratorBasedBuilder):
    """Two-domain interaction sequences; every configuration has the same features.

    manual_dir of the download configuration is the folder of raw files. `built` hands over events
    that were built already.
    """

    name = BUILDER
    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "python -m oa_jax data list says which files, and where from."
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=s.name, description=f"{s.protocol}: {' + '.join(s.domains)}")
        for s in catalogue.SETS.values()
    ]

    def __init__(self, *, built: Built | None = None, **options):
        self._built = built
        super().__init__(file_format="array_record", **options)

    def _info(self):
        whole = {"user": np.int32, "raw_user": tfds.features.Text()}
        events = {"item": np.int32, "domain": np.int8, "time": np.int64, "role": np.int8}
        features = {k: tfds.features.Tensor(shape=(None,), dtype=v) for k, v in events.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sequences of users in two domains.",
            features=tfds.features.FeaturesDict(whole | features),
            disable_shuffling=True,  # record k is user k
        )

    def _split_generators(self, dl_manager):
        built = self._built
        if built is None:
            built, _, _ = build(self.builder_config.name, dl_manager.manual_dir, Reading())
        return {"train": self._generate_examples(built)}

    def _generate_examples(self, built):
        n_users = len(built.raw_users)
        ends = np.searchsorted(built.user, np.arange(n_users + 1))
        domain = (built.item > built.n_items[0]).astype(np.int8)
        columns = {
            "item": built.item.astype(np.int32),
            "domain": domain,
            "time": built.time.astype(np.int64),
            "role": built.role,
        }
        for user in range(n_users):
            rows = slice(ends[user], ends[user + 1])
            example = {name: column[rows] for name, column in columns.items()}
            yield user, {"user": user, "raw_user": built.raw_users[user]} | example
