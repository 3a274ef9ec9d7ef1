"""The job files of Kubernetes against KubeRay's own definition of a RayJob, where that is at hand.

It is 1.4 MB of another project's, so it does not lie here: `BANPICK_RAYJOB_CRD` names it, the file
ray-operator/config/crd/bases/ray.io_rayjobs.yaml of github.com/ray-project/kuberay. Without it the job files are held
against a schema written by hand (test_jobs.py), and here that schema against the definition.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from crd_schema import fields_of, schema_of

from banpick_exp.sweep.study import studies

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "BANPICK_RAYJOB_CRD"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    if not os.environ.get(VARIABLE):
        pytest.skip(f"{VARIABLE} names no file: KubeRay's ray.io_rayjobs.yaml, see the head of this file")
    with open(os.environ[VARIABLE]) as file:
        found = schema_of(yaml.load(file, Loader=yaml.CSafeLoader), "v1")
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def errors(document: Any, schema: dict[str, Any]) -> list[str]:
    return [
        f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(schema).iter_errors(document)
    ]


@pytest.mark.parametrize("name", studies())
def test_a_rayjob_fits_kuberays_own_definition(name: str, schema: dict[str, Any]) -> None:
    document = yaml.safe_load((ROOT / "sweeps" / name / "job.rayjob.yaml").read_text())
    assert errors(document, schema) == []
    document["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "typo"
    assert len(errors(document, schema)) == 1


def test_the_schema_written_by_hand_lies_within_it(schema: dict[str, Any]) -> None:
    ours = json.loads((ROOT / "tests/house/schemas/rayjob.reduced.json").read_text())
    theirs = dict(fields_of(schema, schema))
    for path, field in fields_of(ours, ours):
        if path.startswith("metadata."):
            continue  # of Kubernetes itself; the definition says no more than that it is an object
        assert path in theirs, f"{path} is no field of a RayJob"
        wanted = theirs[path].get("type")
        assert field.get("type", wanted) in (wanted, *(wanted if isinstance(wanted, list) else ())), path
        assert set(theirs[path].get("required", ())) <= set(field.get("required", ())), path
        assert set(field.get("enum", ())) <= set(theirs[path].get("enum", field.get("enum", ()))), path


DEFINITION = """
spec:
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          required: [spec]
          properties:
            metadata: {type: object}
            spec:
              type: object
              properties:
                port: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}
                labels: {type: object, additionalProperties: {type: string}}
                free: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                pods: {type: array, items: {type: object, description: one, properties: {name: {type: string}}}}
                gone: {type: string, nullable: true}
"""


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ({"metadata": {"name": "x"}, "spec": {"port": "http", "labels": {"a": "b"}, "free": {"b": 1}}}, 0),
        ({"spec": {"port": 8080, "pods": [{"name": "x"}], "gone": None}}, 0),
        ({}, 1),
        ({"spec": {"prot": 8080}}, 1),
        ({"spec": {"pods": [{"name": "x"}, {"nmae": "x"}]}}, 1),
        ({"spec": {"labels": {"a": 1}}}, 1),
        ({"spec": {"port": None}}, 1),
        ({"spec": {}, "kindd": "RayJob"}, 1),
    ],
)
def test_a_definition_becomes_a_schema_that_refuses_what_it_does_not_name(document: Any, wrong: int) -> None:
    assert len(errors(document, schema_of(yaml.safe_load(DEFINITION), "v1"))) == wrong


def test_a_version_that_a_definition_lacks_is_no_schema() -> None:
    with pytest.raises(KeyError):
        schema_of(yaml.safe_load(DEFINITION), "v2")
