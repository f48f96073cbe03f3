"""Weights in the forms that GPU kernels read."""

import gc
import weakref

import pytest
import torch

from fastconv.gpu import maps, weights


def test_depthwise_filters_have_their_channels_innermost():
    filters = torch.randn(10, 1, 3, 5, dtype=torch.float16)
    form = maps.channels_innermost(filters)
    assert form.shape == filters.shape
    assert form.dtype is torch.float32
    assert torch.equal(form, filters.float())
    assert (form.stride(0), form.stride(2), form.stride(3)) == (1, 50, 10)


def test_forms_are_made_once_and_again_after_a_change():
    filters = torch.randn(4, 1, 3, 3)
    form = maps.channels_innermost(filters)
    assert maps.channels_innermost(filters) is form
    filters.mul_(2)
    assert torch.equal(maps.channels_innermost(filters), filters)
    filters.data = torch.ones(4, 1, 3, 3)
    assert torch.equal(maps.channels_innermost(filters), filters)
    half = maps.in_dtype(filters, torch.float16)
    assert half.dtype is torch.float16
    assert maps.in_dtype(filters, torch.float16) is half
    assert maps.in_dtype(filters, torch.bfloat16).dtype is torch.bfloat16
    assert maps.in_dtype(filters, torch.float32) is filters


def test_forms_die_with_their_weight():
    filters = torch.randn(4, 1, 3, 3)
    form = weakref.ref(maps.channels_innermost(filters))
    before = len(weights._forms)
    del filters
    gc.collect()
    assert form() is None
    assert len(weights._forms) < before


def test_weights_without_a_version_are_converted_each_time():
    with torch.inference_mode():
        filters = torch.randn(4, 1, 3, 3)
        form = maps.channels_innermost(filters)
        filters.mul_(2)
        assert torch.equal(maps.channels_innermost(filters), filters)
        assert not torch.equal(form, filters)


def test_folded_weights_keep_their_forms_even_without_a_version():
    parameter = torch.nn.Parameter(torch.randn(4, 1, 3, 3))
    with torch.inference_mode():
        folded = weights.own(parameter * 2, parameter)
        assert maps.channels_innermost(folded) is maps.channels_innermost(folded)
    kept = weights.record(folded)
    assert kept is not None
    kept.choices["depthwise_conv2d"] = "a choice"
    assert weights.choices_for(parameter) == {"depthwise_conv2d": "a choice"}
    assert weights.choices_for(torch.nn.Parameter(torch.zeros(1))) == {}
    del folded, kept
    gc.collect()
    assert weights.choices_for(parameter) == {}


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, 2), (3, 4), (256, 256), (257, 512)])
def test_batches_share_choices_by_powers_of_two(count, expected):
    assert maps.bucket(count) == expected


def test_output_size():
    assert maps.output_size((7, 9), (3, 5), (2, 1), (0, 1, 2, 2), (1, 2)) == (3, 5)
