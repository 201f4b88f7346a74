import numpy as np
import pytest

from oa_jax.errors import UserError
from oa_jax.events.log import domain_of, make_log

USER, ITEM, TIME = [0, 0, 1, 2, 2, 2], [1, 3, 2, 5, 1, 1], [7, 7, 3, 1, 2, 9]


def test_log_has_the_stated_types_and_views():
    log = make_log(USER, ITEM, TIME, (2, 3), "toy")
    assert (log.user.dtype, log.item.dtype, log.time.dtype) == (np.int32, np.int32, np.int64)
    assert log.n_users == 3
    np.testing.assert_array_equal(log.offsets, [0, 2, 3, 6])
    # Items 1 and 2 are A, 3 to 5 are B.
    np.testing.assert_array_equal(log.domain, [0, 1, 0, 1, 0, 0])
    assert log.domain.dtype == np.int8


def test_domain_of_keeps_the_shape():
    np.testing.assert_array_equal(domain_of(np.array([[1, 2], [3, 5]]), (2, 3)), [[0, 0], [1, 1]])


def test_fingerprint_is_of_the_content():
    log = make_log(USER, ITEM, TIME, (2, 3), "toy")
    same = make_log(np.array(USER, np.uint8), ITEM, np.array(TIME, np.int16), (2, 3), "other name")
    assert log.fingerprint() == same.fingerprint()


@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_fingerprint_changes_with_every_column(column):
    changed = [list(USER), list(ITEM), list(TIME), (2, 3)]
    if column == 3:
        changed[3] = (3, 2)
    else:
        changed[column][-1] += 1
    log = make_log(USER, ITEM, TIME, (2, 3), "toy")
    assert make_log(*changed, "toy").fingerprint() != log.fingerprint()


BAD = {
    "lengths differ": (([0, 0], [1], [1, 2]), "user 2, item 1, time 2"),
    "empty": (([], [], []), "no interactions"),
    "first user not 0": (([1], [1], [1]), "row 0, user 1"),
    "user skipped": (([0, 2], [1, 1], [1, 1]), "row 1, user 2"),
    "users not grouped": (([0, 1, 0], [1, 1, 1], [1, 1, 1]), "row 2, user 0"),
    "item 0": (([0, 0], [1, 0], [1, 2]), "row 1, item 0"),
    "item above": (([0, 0], [1, 6], [1, 2]), "row 1, item 6: expected an id in 1..5"),
    "item negative": (([0, 0], [-1, 5], [1, 2]), "row 0, item -1"),
    "item wraps round int32": (([0, 0], [1, 2**32 + 1], [1, 2]), "row 1, item 4294967297"),
    "item fraction": (([0, 0], [1, 1.5], [1, 2]), "item: found float64"),
    "time as text": (([0, 0], [1, 2], ["1", "2"]), "time: found <U1"),
    "time backwards": (([0, 0, 1], [1, 2, 3], [5, 4, 1]), "row 1, time 4"),
    "two dimensions": (([0, 0], [[1], [2]], [1, 2]), "item: found shape (2, 1)"),
}


@pytest.mark.parametrize(("columns", "expected"), BAD.values(), ids=BAD)
def test_bad_columns_are_refused(columns, expected):
    with pytest.raises(UserError) as caught:
        make_log(*columns, (2, 3), "toy")
    message = str(caught.value)
    assert message.startswith("toy: ") and expected in message and "\n" not in message


def test_both_domains_need_items():
    for wrong in ((0, 3), (3, 3, 3), (3.5, 3), None, 5):
        with pytest.raises(UserError, match="^toy: n_items=.*: expected two, each a whole number"):
            make_log([0], [1], [1], wrong, "toy")
    with pytest.raises(UserError, match="^name=None: expected text"):
        make_log([0], [1], [1], (3, 3), None)


def test_time_may_stand_still_and_may_restart_with_the_next_user():
    make_log([0, 0, 1], [1, 1, 1], [5, 5, 0], (2, 3), "toy")


# --- roles -------------------------------------------------------------------------------------

ROLES = [0, 2, -1, 0, 1, 2]


def test_roles_are_part_of_the_fingerprint_only_if_there_are_any():
    bare, log = (make_log(USER, ITEM, TIME, (2, 3), "toy", role) for role in (None, ROLES))
    other = make_log(USER, ITEM, TIME, (2, 3), "toy", [*ROLES[:-1], -1])
    assert log.role.dtype == np.int8 and bare.role is None
    assert len({bare.fingerprint(), log.fingerprint(), other.fingerprint()}) == 3


BAD_ROLES = {
    "unknown": ([0, 3, -1, 0, 1, 2], "row 1, role 3: expected one of -1..2"),
    "training after a target": ([2, 0, -1, 0, 1, 2], "row 1, role 0: expected no training event"),
    "training after context": ([0, 0, 0, -1, 0, 2], "row 4, role 0: expected no training event"),
    "two test targets": ([2, 2, 0, 0, 0, 1], "row 1, role 2: expected one target of a kind"),
    "two validation targets": ([0, 0, 0, 1, 1, 2], "row 4, role 1: expected one target of a kind"),
    "test before validation": ([0, 0, 0, 2, -1, 1], "row 5, role 1: expected one target of a kind"),
    "too few": ([0, 0], "columns of different length: user 6, item 6, time 6, role 2"),
}


@pytest.mark.parametrize("case", BAD_ROLES)
def test_bad_roles_are_refused(case):
    role, expected = BAD_ROLES[case]
    with pytest.raises(UserError) as caught:
        make_log(USER, ITEM, TIME, (2, 3), "toy", role)
    assert str(caught.value).startswith(f"toy: {expected}")
