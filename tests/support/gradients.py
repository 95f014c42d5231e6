"""Gradients by name, and how near they are to those of a reference."""

from __future__ import annotations

import torch


def gradients_of(loss, model):
    """Of every parameter that has one, by name."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_near(found, expected, tolerance=1e-5, negligible=1e-7):
    """A tensor's gradient differs by no more than this share of its largest element, if that is more than rounding.

    Negligible is what is below this share of the largest element of all: an attention's key biases shift all its
    scores alike.
    """
    assert found.keys() == expected.keys()
    assert len(expected) > 10
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert largest > 0.1
    for name, gradient in expected.items():
        if gradient.abs().max() > negligible * largest:
            atol = tolerance * float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=name)
