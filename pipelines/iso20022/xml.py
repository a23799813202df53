"""XML of strangers, read without what XML can do: no document type, no entities, nothing from elsewhere, and bounds.

Raises `Iso20022Error`, which names the place as a path of element names and says what to change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError, SubElement, TreeBuilder, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from pipelines.errors import StreambankError

__all__ = ["VERSIONS", "Iso20022Error", "Node", "document", "new_document", "text_of"]

MAX_BYTES: Final = 4 << 20
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 200_000
NAMESPACE: Final = re.compile(r"urn:iso:std:iso:20022:tech:xsd:((?:pacs|pain|camt)\.[0-9]{3})\.([0-9]{3})\.([0-9]{2})")

VERSIONS: Final = {
    "pacs.008": "001.08", "pacs.002": "001.10", "pain.001": "001.09", "pain.002": "001.10", "camt.053": "001.08",
}  # fmt: skip
"""Versions that are written."""
OLDEST: Final = {"pacs.008": 2, "pain.001": 3}
"""Oldest versions that are read: their elements have the same names in the parts that are used."""


class Iso20022Error(StreambankError):
    """The message cannot be taken. ``path`` is the place, ``code`` an ISO 20022 reason code where one fits."""

    def __init__(self, path: str, detail: str, code: str = "NARR") -> None:
        super().__init__(f"{path}: {detail}" if path else detail)
        self.path = path
        self.detail = detail
        self.code = code


class _Bounded(TreeBuilder):
    """Builds a tree of bounded depth and size."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = self._elements = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        self._depth += 1
        self._elements += 1
        if self._depth > MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise Iso20022Error(
                "", f"the XML is deeper than {MAX_DEPTH} or has more than {MAX_ELEMENTS:,} elements; split the message"
            )
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Element:
        self._depth -= 1
        return super().end(tag)


class Node:
    """An element with its place, read by local names within one namespace."""

    __slots__ = ("_element", "_namespace", "path")

    def __init__(self, element: Element, namespace: str, path: str) -> None:
        self._element = element
        self._namespace = namespace
        self.path = path

    def all(self, name: str) -> list[Node]:
        found = self._element.findall(f"{{{self._namespace}}}{name}")
        return [
            Node(element, self._namespace, f"{self.path}/{name}" + (f"[{index}]" if len(found) > 1 else ""))
            for index, element in enumerate(found, 1)
        ]

    def find(self, *names: str) -> Node | None:
        """The one element at a path below, or None; raises for several."""
        node = self
        for name in names:
            found = node.all(name)
            if len(found) > 1:
                raise Iso20022Error(f"{node.path}/{name}", "is there more than once", "FF01")
            if not found:
                return None
            node = found[0]
        return node

    def need(self, *names: str) -> Node:
        node = self.find(*names)
        if node is None:
            raise Iso20022Error(f"{self.path}/{'/'.join(names)}", "is missing", "FF01")
        return node

    def text(self, most: int, pattern: re.Pattern[str] | None = None) -> str:
        """The element's text without the space around it: 1 to ``most`` characters, none of them a control."""
        value = (self._element.text or "").strip()
        if len(self._element) or not 1 <= len(value) <= most or not value.isprintable():
            raise Iso20022Error(self.path, f"must be 1 to {most} printable characters", "FF01")
        if pattern is not None and not pattern.fullmatch(value):
            raise Iso20022Error(self.path, f"must match {pattern.pattern}", "FF01")
        return value

    def attribute(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self._element.get(name, "")
        if not pattern.fullmatch(value):
            raise Iso20022Error(f"{self.path}/@{name}", f"must match {pattern.pattern}", "FF01")
        return value


def text_of(node: Node | None, most: int, pattern: re.Pattern[str] | None = None) -> str | None:
    """The text of an optional element."""
    return None if node is None else node.text(most, pattern)


def document(data: bytes) -> tuple[str, str, Node]:
    """Message (``pacs.008``), its name with version (``pacs.008.001.08``) and the document's element.

    Raises `Iso20022Error`.
    """
    if len(data) > MAX_BYTES:
        raise Iso20022Error("", f"the message has {len(data):,} bytes, more than {MAX_BYTES:,}; split it")
    parser = DefusedXMLParser(target=_Bounded(), forbid_dtd=True, forbid_entities=True, forbid_external=True)
    try:
        parser.feed(data)
        root = parser.close()
    except DefusedXmlException:
        raise Iso20022Error("", "document types and entities are not taken; send plain XML") from None
    except (ParseError, ValueError, LookupError) as error:
        raise Iso20022Error("", f"is not well-formed XML: {error}") from None
    namespace, _, name = str(root.tag).removeprefix("{").rpartition("}")
    found = NAMESPACE.fullmatch(namespace)
    if name != "Document" or found is None or found[1] not in OLDEST or int(found[3]) < OLDEST[found[1]]:
        taken = ", ".join(f"{message}.001.{version:02} and later" for message, version in OLDEST.items())
        raise Iso20022Error("", f"the root must be Document of {taken}; found {str(root.tag)[:100]!r}")
    return found[1], ".".join(found.groups()), Node(root, namespace, "Document")


def new_document(message: str, body: str) -> tuple[Element, Callable[[], bytes]]:
    """The empty body of a message to write, and what makes bytes of the whole."""
    root = Element("Document", {"xmlns": f"urn:iso:std:iso:20022:tech:xsd:{message}.{VERSIONS[message]}"})
    return SubElement(root, body), lambda: tostring(root, "utf-8", xml_declaration=True)
