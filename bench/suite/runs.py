"""The run level: epochs of the embedded digits by fastbn.fit, and how long everyone takes to the accuracy
that BN-only reaches.

A row per epoch: the seconds of training so far, and the accuracy at its end. Evaluation, and what compiles
before the first epoch, are outside. Runs follow one another, each once: a few seconds each, they could only
be interleaved by the epoch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bench.records.rows import Row
from bench.suite import gate
from bench.suite.cases import Case, Run
from bench.suite.measure import admit
from bench.suite.providers import few, providers
from bench.suite.steps import Provider
from fastbn import fit
from fastbn.data.digits import load_digits
from fastbn.errors import Stopped


def case_of(run: Run, device: torch.device) -> Case:
    """Return the case of a run's step."""
    precision = "fp32" if device.type == "cpu" else "mixed"
    return Case(run.depth, run.batch_size, 32, width=run.width, precision=precision)


def everyone(run: Run, device: torch.device) -> list[Provider]:
    """Return one of each kind, as fit runs them: eagerly, but for fastbn's own steps, which it captures as
    CUDA graphs."""
    return few(providers(case_of(run, device), device), "eager")


def measure(run: Run, device: torch.device) -> dict[str, list[Row]]:
    """Return by provider an epoch after the other, the last being the whole run; one failed row where the
    gate is shut."""
    case, train, test = case_of(run, device), *load_digits()
    train = train.limit(run.limit)
    wanted = gate.expected(case, device)
    found = {}
    for provider in everyone(run, device):
        step = provider.row("run", case)
        row = dataclasses.replace(step, case=run.title)
        admit(step, case, provider, wanted, device)
        for name in ("gradient_error", "failed", "first_seconds"):
            setattr(row, name, getattr(step, name))
        if row.failed:
            found[provider.name] = [row]
            continue
        model = provider.network(case, device)
        settings: dict[str, Any] = {"epochs": run.epochs, "batch_size": run.batch_size}
        settings["precision"] = provider.precision.removeprefix("amp-")
        try:
            history = fit(model, train, test, progress=False, **settings)
        except Stopped as stopped:  # fit took the signal; it was meant for the session
            raise KeyboardInterrupt from stopped
        found[provider.name] = _epochs(row, history, device)
    return found


def _epochs(row: Row, history: list[dict[str, Any]], device: torch.device) -> list[Row]:
    """Return the same row for each epoch of fit's history, with what has added up until then."""
    found = []
    seconds, joules = 0.0, 0.0
    for line in history:
        seconds += line["seconds"]
        joules += line["energy_joules"] or 0.0
        own = dataclasses.replace(row, epochs=line["epoch"] + 1, accuracy=line["test_accuracy"])
        own.seconds, own.n, own.samples = seconds, 1, [seconds]
        own.energy_joules = joules if line["energy_joules"] is not None else None
        own.peak_memory_bytes = line["peak_memory_bytes"] if device.type == "cuda" else None
        found.append(own)
    return found


def reaching(found: dict[str, list[Row]], provider: str) -> Row | None:
    """Return the first epoch at whose end this provider is at the accuracy with which fastbn's run ends; None
    if it never is, or none ran."""
    ours = next((own[-1].accuracy for name, own in found.items() if name.startswith("fastbn")), None)
    known = (own for own in found[provider] if ours is not None and own.accuracy is not None)
    return next((own for own in known if own.accuracy >= ours), None)
