"""What a certificate says, to people and to programs."""

import dataclasses
import json
import math

import pytest
import torch

import kdengine
from kdengine.losses import KD, Hint
from kdengine.testing import Certificate, Finding, certify_loss, check_loss

from .test_traps import Divergence, MeanOverClasses, WithoutSquare

HELD = Finding("split", "any split gives the same", "two halves", "held", 3.1e-16, 1e-12)
EQUAL = Finding("state", "a checkpoint changes nothing", "one step", "held", 0.0, 0.0)
FAILED = Finding(
    "classes", "a sum over classes", "more classes", "failed", math.nan, 1e-9, "it is half\nof what it was"
)
BESIDE = Finding("scalars", "follows a schedule", "", "does not apply", message="it has no such argument")
CERTIFICATE = Certificate("Mine", {"power": 2.0, "rule": len}, "2.14.1", (HELD, EQUAL, FAILED, BESIDE))


def test_the_text_says_what_was_tried_what_held_and_what_did_not_and_by_how_much():
    assert CERTIFICATE.text().splitlines() == [
        "Certificate of Mine(power=2.0, rule=<built-in function len>)",
        "2 held, 1 failed, 1 not applicable: classes; random batches on the CPU, torch 2.14.1",
        "",
        "held    split: any split gives the same",
        "        tried: two halves",
        "        worst deviation 3.1e-16 of 1e-12 allowed",
        "held    state: a checkpoint changes nothing",
        "        tried: one step",
        "        equal bit for bit",
        "FAILED  classes: a sum over classes",
        "        tried: more classes",
        "        it is half",
        "        of what it was",
        "-       scalars: follows a schedule",
        "        does not apply: it has no such argument",
    ]


def test_the_facts_are_json_of_any_argument_and_number():
    facts = json.loads(json.dumps(CERTIFICATE.facts(), allow_nan=False))
    assert facts["arguments"] == {"power": 2.0, "rule": "<built-in function len>"}
    assert facts["held"] is False
    assert facts["findings"][0] == {
        "check": "split",
        "promise": "any split gives the same",
        "tried": "two halves",
        "outcome": "held",
        "deviation": 3.1e-16,
        "tolerance": 1e-12,
        "message": "",
    }
    assert facts["findings"][2]["deviation"] is None


def test_a_certificate_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CERTIFICATE.loss = "Other"


def test_every_check_has_a_finding_and_a_promise_and_measures_where_it_compares():
    rows = certify_loss(Divergence).rows
    assert len({row.check for row in rows}) == len(rows)
    assert all(row.promise and row.tried for row in rows)
    measured = {row.check for row in rows if row.deviation is not None}
    assert {"split", "gradient", "state", "temperature", "classes", "compile", "equality"} <= measured
    assert all(row.deviation <= row.tolerance for row in rows if row.deviation is not None)


def test_check_loss_returns_what_certify_loss_does():
    checked, certified = check_loss(KD, temperature=2.0), certify_loss(KD, temperature=2.0)
    assert checked == certified
    assert checked.held


def test_a_failure_says_by_how_much():
    failed = {row.check: row for loss in (MeanOverClasses, WithoutSquare) for row in certify_loss(loss).failed}
    assert set(failed) == {"classes", "temperature"}
    assert failed["classes"].deviation > failed["classes"].tolerance == 1e-9
    assert failed["temperature"].deviation == pytest.approx(2.0)


def test_a_loss_that_cannot_be_made_has_one_failure_and_nothing_else_is_tried():
    class Broken(kdengine.Loss):
        def setup(self, example):
            raise RuntimeError("no room")

    certificate = certify_loss(Broken)
    assert [row.check for row in certificate.failed] == ["construction"]
    assert "RuntimeError: no room" in certificate.failed[0].message
    assert {row.outcome for row in certificate.rows[1:]} == {"does not apply"}
    with pytest.raises(AssertionError, match="Broken: construction raised RuntimeError: no room"):
        check_loss(Broken)


def test_what_does_not_apply_says_why():
    why = {row.check: row.message for row in certify_loss(Hint, student="a", teacher="b").rows if row.message}
    assert "claims nothing" in why["equality"]
    assert "no argument temperature" in why["temperature"]
    assert "typed Scalar" in why["scalars"]


def test_random_state_and_gradient_mode_are_left_alone():
    before = torch.get_rng_state()
    with torch.no_grad():
        certify_loss(Divergence)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
