"""BatchNorm folding, and when the functional ops' packed weights are remembered and forgotten."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

import fastconv
from fastconv import backend, folding


@pytest.fixture(autouse=True)
def empty_cache(native):
    folding.clear_cache()
    yield
    folding.clear_cache()


@pytest.fixture
def packs(monkeypatch):
    """Counts the packings."""
    calls = []

    def counted(weight, bias):
        calls.append(weight)
        return torch.ops.fastconv.pack_pointwise(weight, bias)

    # By its full name the module: fastconv.ops has the function of the same name.
    module = sys.modules["fastconv.ops.pointwise_conv2d"]
    monkeypatch.setattr(module, "pack_pointwise", counted)
    return calls


INPUT = torch.randn(1, 8, 5, 5, generator=torch.Generator().manual_seed(0))


def call(weight, bias=None):
    with torch.no_grad():
        output = fastconv.pointwise_conv2d(INPUT, weight, bias)
        torch.testing.assert_close(output, F.conv2d(INPUT, weight, bias))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_batch_norm(affine, bias):
    convolution = torch.nn.Conv2d(4, 6, 3, bias=bias).double()
    norm = torch.nn.BatchNorm2d(6, eps=1e-2, affine=affine).double().eval()
    for tensor in [*norm.parameters(), norm.running_mean]:
        torch.nn.init.normal_(tensor)
    torch.nn.init.uniform_(norm.running_var, 0.1, 3)
    weight, shift = folding.fold_batch_norm(
        convolution.weight, convolution.bias,
        norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps,
    )  # fmt: skip
    input = torch.randn(2, 4, 7, 7, dtype=torch.double)
    torch.testing.assert_close(F.conv2d(input, weight, shift), norm(convolution(input)))


def test_the_same_weights_are_packed_once(packs):
    weight, bias = torch.randn(16, 8, 1, 1), torch.randn(16)
    for _ in range(3):
        call(weight, bias)
    assert len(packs) == 1
    call(weight)  # without the bias it is another packing
    assert len(packs) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight[3].zero_(),
        lambda weight: weight.detach().neg_(),
        lambda weight: setattr(weight, "data", torch.randn(16, 8, 1, 1)),
        lambda weight: weight.copy_(torch.randn(16, 8, 1, 1)),
    ],
)
def test_changed_weights_are_packed_again(packs, change):
    weight = torch.randn(16, 8, 1, 1)
    call(weight)
    change(weight)
    call(weight)
    assert len(packs) == 2


def test_an_optimizer_step_is_seen(packs):
    weight = torch.nn.Parameter(torch.randn(16, 8, 1, 1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):
        call(weight)
        fastconv.pointwise_conv2d(INPUT, weight).square().sum().backward()
        optimizer.step()
    call(weight)
    assert len(packs) == 3


def test_clear_cache_is_for_unseen_changes(packs):
    weight = torch.randn(16, 8, 1, 1)
    call(weight)
    weight.data.mul_(2)
    folding.clear_cache()
    call(weight)
    assert len(packs) == 2


def test_packed_weights_die_with_the_weights():
    weight = torch.randn(16, 8, 1, 1)
    call(weight)
    assert len(folding._entries) == 1
    del weight
    gc.collect()
    assert len(folding._entries) == 0


def test_the_cache_is_bounded(monkeypatch, packs):
    monkeypatch.setattr(folding, "CACHE_ENTRIES", 3)
    weights = [torch.randn(16, 8, 1, 1) for _ in range(5)]
    for weight in weights:
        call(weight)
    assert len(folding._entries) == 3
    call(weights[-1])
    assert len(packs) == 5
    call(weights[0])
    assert len(packs) == 6


def test_inference_tensors_are_not_remembered(packs):
    with torch.inference_mode():
        weight = torch.randn(16, 8, 1, 1)
        call(weight)
        weight.mul_(2)  # which nothing records
        call(weight)
    assert not packs or not folding._entries


def test_tensors_with_the_data_of_inference_tensors_are_not_remembered(packs):
    with torch.inference_mode():
        weight = torch.nn.Parameter(torch.randn(16, 8, 1, 1), requires_grad=False)
        with torch.inference_mode(False):
            weight.data = torch.randn(16, 8, 1, 1)
    assert not weight.is_inference()
    call(weight)
    assert not folding._entries


def test_another_instruction_set_packs_again(packs):
    weight = torch.randn(16, 8, 1, 1)
    call(weight)
    with backend.use_isa(0):
        call(weight)
    call(weight)
    assert len(packs) == 3


def test_compiled_calls_do_not_touch_the_cache():
    weight = torch.randn(16, 8, 1, 1)
    with torch.no_grad():
        torch.compile(fastconv.pointwise_conv2d, backend="aot_eager")(INPUT, weight)
    assert not folding._entries


def test_calls_that_want_gradients_do_not_touch_the_cache():
    fastconv.pointwise_conv2d(INPUT, torch.randn(16, 8, 1, 1, requires_grad=True))
    assert not folding._entries


def test_two_weights_with_equal_values_do_not_mix():
    first = torch.randn(16, 8, 1, 1)
    second = first.clone()
    call(first)
    call(second)
    second.neg_()
    call(first)
    call(second)


def test_threads_share_packed_weights(native):
    """All threads find the same packed weights, also while weights change and are forgotten."""
    inputs = [torch.randn(1, 24, 9, 7) for _ in range(16)]
    shared = torch.randn(40, 24, 1, 1)
    expected = [fastconv.pointwise_conv2d(input, shared, None) for input in inputs]
    folding.clear_cache()
    wrong = []

    def work(index: int) -> None:
        for round_index in range(30):
            at = (index + round_index) % len(inputs)
            if not torch.equal(fastconv.pointwise_conv2d(inputs[at], shared, None), expected[at]):
                wrong.append((index, round_index))
            own = shared * 2  # lives for one call
            fastconv.pointwise_conv2d(inputs[at], own, None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert not wrong
    del work
    gc.collect()
    assert len(folding._entries) == 1
