"""The compiled ops as such: they are there, check their arguments, and do not depend on threads."""

import importlib.util

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import fastconv
from fastconv import _library, backend, folding
from fastconv.ops import _common

from .assertions import run
from .cases import CASES, LAYOUTS

OPS = torch.ops.fastconv


def test_what_was_built_is_loaded():
    """Else every native test would be skipped, and nobody would see it."""
    if importlib.util.find_spec("fastconv._C") is None:
        pytest.skip("fastconv was installed without its compiled part")
    assert _library.is_loaded(), _library.load_error()


@pytest.mark.parametrize("op", CASES)
def test_nan_reaches_the_output_that_an_op_allocates(native, op):
    case = CASES[op][0]
    arguments = case.arguments(layout="channels_last")
    run(case, arguments)  # packs
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as events:
        output = run(case, arguments)
    fills = [event for event in events.events() if event.name == "aten::fill_"]
    assert fills, "the op's output was not filled with NaN"
    assert not output.isnan().any()


@pytest.mark.parametrize("op", CASES)
def test_results_do_not_depend_on_the_number_of_threads(native, op):
    threads = torch.get_num_threads()
    try:
        for case in CASES[op]:
            if not case.native:
                continue
            outputs = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                with torch.no_grad():
                    outputs.append(run(case, case.arguments()))
            assert torch.equal(outputs[0], outputs[1]), f"{case}: 1 and 2 threads"
            assert torch.equal(outputs[0], outputs[2]), f"{case}: 1 and 3 threads"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("op", CASES)
def test_results_do_not_depend_on_layout_and_grad_mode(native, op):
    for case in CASES[op]:
        if not case.native:
            continue
        expected = run(case, case.arguments()).detach()
        for layout in LAYOUTS[:3] if expected.dim() == 4 else LAYOUTS[:1]:
            with torch.no_grad():
                assert torch.equal(run(case, case.arguments(layout=layout)), expected), layout
        output = run(case, case.arguments(grad=True))
        assert output.requires_grad
        if op == "conv2d_bias_act":  # whose weights are kept in a form with other rounding
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(output, expected), "with a gradient"


@pytest.mark.parametrize("op", CASES)
def test_a_call_with_remembered_weights_leaves_the_checks_to_the_native_op(native, op, monkeypatch):
    case = CASES[op][0]
    arguments = case.arguments(layout="channels_last")
    with torch.no_grad():
        expected = run(case, arguments)  # packs
        monkeypatch.setattr(_common, "_checked_call", None)
        assert torch.equal(run(case, arguments), expected)


def test_remembered_weights_are_refused_as_others(native):
    weight, bias = torch.randn(8, 4, 1, 1), torch.randn(8)
    half = weight.bfloat16()
    with torch.no_grad():
        for _ in range(2):
            fastconv.pointwise_conv2d(_x(1, 4, 3, 3), weight, bias)
            fastconv.pointwise_conv2d(_x(1, 4, 3, 3).bfloat16(), half)
        for args, error, message in [
            ((_x(1, 4, 3, 3), half), ValueError, "weight must have input's dtype"),
            ((_x(1, 4, 3, 3).bfloat16(), weight, bias), ValueError, "weight must have input's"),
            ((_x(1, 5, 3, 3), weight, bias), ValueError, r"weight must have shape \(K, 5, 1, 1\)"),
            ((_x(4, 3, 3), weight, bias), ValueError, "input must have 4 dimensions"),
            ((None, weight, bias), TypeError, "input must be a Tensor, got None"),
            (([], weight, bias), TypeError, "input must be a Tensor, got list"),
            ((_x(1, 4, 3, 3).to("meta"), weight, bias), ValueError, "weight must be on input's"),
            ((_x(1, 4, 3, 3), weight, bias, (1, 1, 1)), ValueError, "stride must be an int"),
        ]:
            with pytest.raises(error, match=f"^pointwise_conv2d: {message}"):
                fastconv.pointwise_conv2d(*args)
        for name, shape in {"residual": (1, 8, 3, 3), "input_scale": (1, 4)}.items():
            elsewhere = {name: torch.empty(shape, device="meta")}
            with pytest.raises(ValueError, match=f"^pointwise_conv2d: {name} must be on input's"):
                fastconv.pointwise_conv2d(_x(1, 4, 3, 3), weight, bias, **elsewhere)
        with pytest.raises(fastconv.BackendError, match="input is a Tagged"):
            fastconv.pointwise_conv2d(_x(1, 4, 3, 3).as_subclass(Tagged), weight, bias)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
@pytest.mark.parametrize("op", CASES)
def test_every_op_becomes_part_of_graphs_where_no_backend_is_asked_for(op):
    case = CASES[op][0]
    arguments = case.arguments(layout="channels_last")
    with fastconv.use_backend("auto"), torch.no_grad():
        expected = run(case, arguments)
        compiled = torch.compile(lambda **all: run(case, all), fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(**arguments), expected)
        traced = torch.jit.trace(
            lambda input: run(case, arguments | {"input": input}), arguments["input"]
        )
        torch.testing.assert_close(traced(arguments["input"]), expected, rtol=1e-4, atol=1e-4)


class Tagged(torch.Tensor):
    """A tensor that is none of PyTorch's own."""


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@pytest.mark.parametrize("suffix", ["", "_infer"])
@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            "pointwise_conv2d",
            lambda: (_x(1, 4, 5, 5), _x(8, 3, 1, 1), None, [1, 1], 0, None, None),
            r"weight must have shape \(K, 4, 1, 1\), got \[8, 3, 1, 1\]",
        ),
        (
            "pointwise_conv2d",
            lambda: (_x(1, 4, 5, 5), _x(8, 4, 1, 1), None, [1, 1], 9, None, None),
            "activation must be a code from 0 to 8, got 9",
        ),
        (
            "depthwise_conv2d",
            lambda: (_x(1, 4, 5, 5), _x(8, 1, 3, 3), None, [1, 1], [1] * 4, [1, 1], 0),
            r"weight must have shape \(4, 1, KH, KW\), got \[8, 1, 3, 3\]",
        ),
        (
            "depthwise_conv2d",
            lambda: (_x(1, 4, 2, 2), _x(4, 1, 3, 3), None, [1, 1], [0] * 4, [1, 1], 0),
            "input must be, with its padding, at least as large as the kernel, got 2 x 2",
        ),
        (
            "depthwise_separable_conv2d",
            lambda: (
                *(_x(1, 4, 5, 5), _x(4, 1, 3, 3), None, _x(6, 5, 1, 1), None),
                *([1, 1], [1] * 4, [1, 1], 0, 0, None),
            ),
            r"pointwise_weight must have shape \(K, 4, 1, 1\), got \[6, 5, 1, 1\]",
        ),
        (
            "inverted_residual",
            lambda: (
                *(_x(1, 4, 5, 5), _x(8, 4, 1, 1), None, _x(8, 1, 3, 3), None),
                *(_x(4, 8, 1, 1), _x(5), [1, 1], [1] * 4, [1, 1], 2, [], 0, 5, None),
            ),
            r"project_bias must have shape \(4,\), got \[5\]",
        ),
        (
            "squeeze_excite",
            lambda: (_x(1, 4, 5, 5), _x(2, 4, 1, 1), None, _x(4, 3, 1, 1), None, 1, 5),
            r".*expand_weight must have shape",
        ),
        (
            "conv2d_bias_act",
            lambda: (_x(1, 3, 5, 5), _x(8, 4, 3, 3), None, [1, 1], [1] * 4, 0),
            "weight must have shape",
        ),
        (
            "pointwise_conv2d_pool",
            lambda: (_x(1, 4, 5, 5), _x(8, 4, 1, 1), _x(9), 0),
            r"bias must have shape \(8,\), got \[9\]",
        ),
        ("linear", lambda: (_x(2, 4), _x(8, 5), None), "weight must have shape"),
        ("linear", lambda: (_x(2, 4).double(), _x(8, 4), None), "input must be float32"),
    ],
)
def test_the_op_itself_rejects(native, suffix, op, args, message):
    with pytest.raises(RuntimeError, match=f"{op}: {message}"):
        getattr(OPS, op + suffix)(*args())


def test_packed_weights_must_fit(native):
    input, weight = _x(1, 4, 5, 5), _x(8, 4, 1, 1)
    call = (input, weight, None, [1, 1], 0, None, None)
    wrong = [_x(3), folding.pack_pointwise(_x(9, 4, 1, 1), None)]
    with backend.use_isa(0):
        scalar = folding.pack_pointwise(weight, None)
    if OPS.isa(-1) != 0:
        wrong.append(scalar)
    for packed in wrong:
        with pytest.raises(RuntimeError, match="pointwise_conv2d: packed must"):
            OPS.pointwise_conv2d_infer(*call, packed)
    good = OPS.pointwise_conv2d_infer(*call, folding.pack_pointwise(weight, None))
    assert torch.equal(good, OPS.pointwise_conv2d_infer(*call))


def test_room_for_packed_weights(native):
    weights = [_x(9, 4, 1, 1), _x(1000, 700)]
    packed = [folding.pack_pointwise(weight, None) for weight in weights]
    room = folding.pack_buffer(weights)
    assert room.shape == (len(packed[0]) + len(packed[1]),)
    for like, size, message in ((_x(1).double(), 1, "like must be float32"), (_x(1), -1, "size")):
        with pytest.raises(RuntimeError, match=f"pack_buffer: {message}"):
            OPS.pack_buffer(like, size)


def test_an_unknown_instruction_set_is_an_error(native):
    with pytest.raises(RuntimeError), backend.use_isa(9):
        pass
    fastconv.linear(_x(1, 4), _x(8, 4))  # the setting is as it was
