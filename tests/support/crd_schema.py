"""The JSON Schema within a Kubernetes CustomResourceDefinition, as strict as an API server that is asked to be.

`kubectl apply` validates strictly by default: a field that the definition does not name is refused, wherever it names
any. What it misses of the server: rules in CEL (x-kubernetes-validations), formats, the uniqueness of list keys, and
all that the operator itself checks later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KEPT = (
    *("type", "enum", "required", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"),
    *("anyOf", "oneOf", "allOf", "not"),
)
"""Keywords that mean in a definition what they mean in JSON Schema, and hold no schema that must be closed."""
OPEN = "x-kubernetes-preserve-unknown-fields"


def schema_of(definition: dict[str, Any], version: str) -> dict[str, Any]:
    """The closed schema of one version of a CustomResourceDefinition. Raises KeyError for a version that it lacks."""
    found = {each["name"]: each["schema"]["openAPIV3Schema"] for each in definition["spec"]["versions"]}
    return _closed(found[version])


def _closed(node: dict[str, Any]) -> dict[str, Any]:
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]} | {key: node[key] for key in ("pattern",) if key in node}
    closed = {key: node[key] for key in KEPT if key in node}
    if "properties" in node:
        closed["properties"] = {name: _closed(field) for name, field in node["properties"].items()}
        if not node.get(OPEN):
            closed["additionalProperties"] = False
    if isinstance(values := node.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(values)
    if "items" in node:
        closed["items"] = _closed(node["items"])
    if node.get("nullable"):
        closed = {"anyOf": [closed, {"type": "null"}]}
    return closed


def fields_of(schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field that a schema names, by its path (`spec.rayClusterSpec.rayVersion`, `[]` for an item)."""
    if (reference := schema.get("$ref")) is not None:
        schema = root["$defs"][reference.rpartition("/")[2]]
    yield at, schema
    for name, field in schema.get("properties", {}).items():
        yield from fields_of(field, root, f"{at}.{name}".removeprefix("."))
    if isinstance(schema.get("items"), dict):
        yield from fields_of(schema["items"], root, f"{at}[]")
