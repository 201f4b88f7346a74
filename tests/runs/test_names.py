"""Raw ids come from the prepared set that a run was trained on, and from no other."""

import dataclasses

import numpy as np

from oa_jax.data import store
from oa_jax.events.log import make_log
from oa_jax.events.split import leave_one_out
from oa_jax.runs import names

LOG = make_log([0, 0, 0, 1, 1, 1, 1], [1, 3, 1, 2, 2, 4, 1], np.arange(7), (2, 2), "mine")
ITEMS = [{"raw": 11, "title": "One"}, {"raw": "y"}, {"raw": "x"}, {"raw": "y", "title": "Y"}]


def test_names_of_a_prepared_set(tmp_path):
    facts = {"domains": ["b", "m"], "items_digest": store.write_items(tmp_path, ITEMS)}
    prepared = store.Prepared(LOG, np.zeros(7), ["u", "ü"], facts, tmp_path)
    log = dataclasses.replace(LOG, origin=prepared)
    found = names.of(log)
    assert (found.users, found.raw) == (["u", "ü"], ["11", "y", "x", "y"]) and found.are_raw
    assert found.title == ["One", None, None, "Y"] and found.domains == ("b", "m")
    assert list(found.keys()) == [("A", "11"), ("A", "y"), ("B", "x"), ("B", "y")]
    # Of no set, or with other items than it has: numbers.
    for found in (names.of(LOG), names.of(dataclasses.replace(log, n_items=(2, 3)))):
        assert found.users == ["0", "1"] and found.raw[:4] == ["1", "2", "3", "4"]
        assert not found.are_raw


def test_popularity_counts_users_in_training_parts():
    """A training part is all but the last two events; an item taken twice counts once."""
    np.testing.assert_array_equal(names.popularity(LOG, leave_one_out(LOG)), [0, 1, 1, 0, 0])
