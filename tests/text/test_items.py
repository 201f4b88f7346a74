"""The text of an item: what stands in it, what is cut, what is unknown."""

import types

import pytest

from oa_jax.text import items

FULL = {
    "title": "Rain  jacket\n",
    "brand": "Acme",
    "price": "$9.99",
    "date": "May 1, 2014",
    "category": ["Clothing", "Jackets"],
    "description": ["Keeps dry.", "", "Two pockets."],
}


def test_all_attributes_in_their_order():
    assert items.item_text("clothing", FULL) == (
        "A clothing item named Rain jacket, of brand Acme, price $9.99, rating May 1, 2014, "
        "price $9.99. Its categories are: Clothing; Jackets. "
        "It is described: Keeps dry.; Two pockets.."
    )


@pytest.mark.parametrize("value", [None, "", "   ", "x" * 101])
def test_a_missing_or_long_value_is_unknown(value):
    text = items.item_text("sports", FULL | {"brand": value})
    assert "of brand unknown," in text
    assert "of brand " + "x" * 100 + "," in items.item_text("sports", FULL | {"brand": "x" * 100})


def test_sentences_and_text_are_cut():
    text = items.item_text("sports", {"title": "a", "description": "y" * 500})
    head = items.item_text("sports", {"title": "a"})
    assert len(text) == len(head) + 1 + items.SENTENCE_LIMIT
    assert len(items.item_text("k" * 5000, {"title": "a"})) == items.TEXT_LIMIT


def test_an_empty_list_has_no_sentence():
    text = items.item_text("sports", FULL | {"category": [], "description": None})
    assert "categories" not in text and "described" not in text


def test_an_item_of_which_nothing_is_known_has_no_text():
    assert items.item_text("sports", {"title": "", "brand": None, "category": []}) is None
    assert items.item_text("sports", {"brand": "Acme"}) is not None
    assert "named 1984," in items.item_text("sports", {"title": 1984})
    odd = {"title": float("nan"), "brand": True, "price": " ", "category": [None, ""], "date": None}
    assert items.item_text("sports", odd) is None
    assert items.item_text("sports", odd | {"title": "a"}) == items.item_text(
        "sports", {"title": "a"}
    )


def test_kinds_of_the_official_domains_and_of_others():
    assert items.kind_of("Cell_Phones_and_Accessories") == "cell phone"
    assert items.kind_of("Home_and_Kitchen") == "home and kitchen"


def test_items_of_douban_are_their_tags():
    assert items.tags_text({"category": ["小说", "", "历史"], "title": "x"}) == "标签:小说、历史"
    assert len(items.tags_text({"category": ["书" * 300]})) == items.TAGS_LIMIT
    assert items.tags_text({"category": [], "title": "x"}) is None
    tags, named = "标签:小说", "A book item named x,"
    sets = [("LLM4CDSR", "movie", tags), ("LLM4CDSR", "music", tags)]
    for protocol, other, text in [*sets, ("own", "movie", named)]:  # own ones may be called so
        of = {"domains": ["book", other], "protocol": protocol}
        set_of = types.SimpleNamespace(
            metadata=of, items=[{"domain": "A", "title": "x", "category": ["小说"]}]
        )
        assert items.texts_of(set_of)[0].startswith(text)


def test_the_fingerprint_sees_every_change():
    texts = ["a", "bc", None, ""]
    same = items.fingerprint(list(texts))
    others = (["ab", "c", None, ""], ["bc", "a", None, ""], ["a", "bc", "", None], ["a", "bc"])
    assert items.fingerprint(texts) == same
    assert len({items.fingerprint(other) for other in others} | {same}) == 5
