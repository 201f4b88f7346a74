"""One text per item, from the attributes of LLM4CDSR's item prompts, in the same order.

The wording of the sentences is ours; the attributes and their order are the official ones.
"""

import hashlib
from collections.abc import Mapping, Sequence

from oa_jax.data.store import Prepared
from oa_jax.data.texts import TEXT_FIELDS, item_fields

VALUE_LIMIT = 100  # a longer attribute is taken for broken and becomes "unknown"
SENTENCE_LIMIT = 128
TEXT_LIMIT = 4095
# What LLM4CDSR calls the items of its domains; any other domain goes by its own name.
KINDS = {
    "Clothing_Shoes_and_Jewelry": "clothing",
    "Sports_and_Outdoors": "sports",
    "Electronics": "electronic",
    "Cell_Phones_and_Accessories": "cell phone",
}
DOUBAN = {"book", "movie", "music"}  # domains whose items are known by their tags, in Chinese
TAGS_LIMIT = 100


def texts_of(prepared: Prepared) -> list[str | None]:
    """The text of every item, A before B; None if the source knows nothing about an item."""
    domains = list(prepared.metadata["domains"])
    if DOUBAN.issuperset(domains) and prepared.metadata["protocol"] != "own":
        return [tags_text(row) for row in prepared.items]
    kinds = dict(zip("AB", map(kind_of, domains), strict=True))
    return [item_text(kinds[row["domain"]], row) for row in prepared.items]


def item_text(kind: str, attributes: Mapping) -> str | None:
    """The text of an item of a kind such as "clothing"; None if it has no attribute.

    attributes: title, brand, price, date are texts; category, description are a text or a list of
    texts. Any may be missing; a value that is blank, or neither text nor number, counts as missing.
    The price appears twice and the date is called a rating, as in the official text.
    """
    known = item_fields(attributes)
    if not known:
        return None
    values = (" ".join(known.get(name, "").split()) for name in TEXT_FIELDS)
    title, brand, price, date = (v if 0 < len(v) <= VALUE_LIMIT else "unknown" for v in values)
    facts = f"of brand {brand}, price {price}, rating {date}, price {price}"
    sentences = [f"A {kind} item named {title}, {facts}."]
    for name, opening in (("category", "Its categories are"), ("description", "It is described")):
        if name in known:
            entries = "; ".join(" ".join(entry.split()) for entry in known[name])
            sentences.append(f"{opening}: {entries}."[:SENTENCE_LIMIT])
    return " ".join(sentences)[:TEXT_LIMIT]


def tags_text(attributes: Mapping) -> str | None:
    """The text of a Douban item: its tags, from the field `category`; None if it has none."""
    tags = [" ".join(tag.split()) for tag in item_fields(attributes).get("category", ())]
    return f"标签:{'、'.join(tags)}"[:TAGS_LIMIT] if tags else None


def kind_of(domain: str) -> str:
    """The word for items of a domain: from `KINDS`, or the domain's own name in words."""
    return KINDS.get(domain, domain.replace("_", " ").lower())


def fingerprint(texts: Sequence[str | None]) -> str:
    """Hex digest of the texts in their order; None and the empty text differ."""
    digest = hashlib.sha256()
    for text in texts:
        content = b"" if text is None else text.encode()
        digest.update(f"{-1 if text is None else len(content)}:".encode() + content)
    return digest.hexdigest()[:16]
