"""What a cached fold watches: each kind of change, in C++ and in Python."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from fastconv import _library
from fastconv.nn._watch import PythonWatch

KINDS = [PythonWatch] if _library._C is None else [PythonWatch, _library._C.Watch]


class Box(dict):
    """A dict that a weak reference can refer to."""


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_nothing_changes(kind):
    owner = {"weight": torch.ones(3), "none": None, "number": 2.5}
    slots = [(owner, name, value) for name, value in owner.items()]
    watch = kind([*slots, (owner, "absent", ...)], [(owner, 3)], [owner["weight"]])
    assert watch.holds()
    assert watch.holds()
    owner["weight"].sum()
    assert watch.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda owner: owner.update(value="other"),
        lambda owner: owner.update(value=None),
        lambda owner: owner.update(value=float("2.5")),  # equal is not the same
        lambda owner: owner.pop("value"),
        lambda owner: owner.update(absent=None),
    ],
)
def test_slots(kind, change):
    owner = {"value": float("2.5")}
    watch = kind([(owner, "value", owner["value"]), (owner, "absent", ...)], [], [])
    assert watch.holds()
    change(owner)
    assert not watch.holds()


def test_sizes(kind):
    owner = {}
    watch = kind([], [(owner, 0)], [])
    assert watch.holds()
    owner["one"] = 1
    assert not watch.holds()
    del owner["one"]
    assert watch.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.add_(1),
        lambda tensor: tensor[:1].zero_(),
        lambda tensor: setattr(tensor, "data", torch.ones(3)),
    ],
)
def test_tensors(kind, change):
    tensors = [torch.ones(2), torch.ones(3), nn.Parameter(torch.ones(3))]
    for index in (1, 2):
        watch = kind([], [], tensors)
        assert watch.holds()
        with torch.no_grad():
            change(tensors[index])
        assert not watch.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.t(),
        lambda data: data.view(9),
        lambda data: data[:2],
        lambda data: data[1:],
        lambda data: data.clone(),
        lambda data: data.double(),
    ],
)
def test_data_is_set_to_a_part_of_it(kind, change):
    """No version counts that, and the first of them are where the data was."""
    tensor = nn.Parameter(torch.arange(9.0).reshape(3, 3))
    watch = kind([], [], [torch.ones(2), tensor])
    tensor.data = change(tensor.data)
    assert not watch.holds()


def test_tensors_that_are_swapped(kind):
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    watch = kind([], [], [first])
    torch.utils.swap_tensors(first, second)
    assert not watch.holds()


def test_a_resized_storage(kind):
    tensor = torch.ones(3000)
    watch = kind([], [], [tensor])
    tensor.untyped_storage().resize_(0)
    assert not watch.holds()


def test_what_does_not_count(kind):
    """Gradients, hooks and flags are kept beside what a tensor is."""
    tensor = nn.Parameter(torch.ones(3))
    watch = kind([], [], [tensor])
    for change in (
        lambda: (tensor * tensor).sum().backward(),
        lambda: tensor.register_hook(lambda grad: grad),
        lambda: setattr(tensor, "grad", None),
        lambda: tensor.requires_grad_(False),
        lambda: setattr(tensor, "note", 1),
    ):
        change()
        assert watch.holds()
        assert watch.holds()
    with torch.no_grad():
        tensor.add_(1)
    assert not watch.holds()


def test_watches_made_in_a_mode(kind):
    with FakeTensorMode():
        fake = torch.ones(3)
        other = kind([], [], [])
    tensor = torch.ones(3)
    with torch.inference_mode():
        watch = kind([], [], [tensor])
    assert watch.holds()
    assert other.holds()
    assert fake.shape == (3,)
    tensor.add_(1)
    assert not watch.holds()


def test_the_layout_of_this_pytorch_s_tensors_is_found(native):
    """If not, all the others pass here, but each forward asks every tensor for its attributes."""
    assert _library._C.Watch([], [], [torch.ones(3)]).holds()
    assert _library._C.reads_memory_of_tensors()


def test_tensors_without_a_version(kind):
    with torch.inference_mode():
        tensor = torch.ones(3)
        watch = kind([], [], [tensor])
        assert watch.holds()
        tensor.add_(1)  # cannot be seen
        assert watch.holds()
        tensor.set_(torch.ones(3))
        assert not watch.holds()


def test_data_that_is_replaced_again_and_again(kind):
    """Where the first data was must not be where a later one is."""
    tensor = torch.ones(1000)
    watch = kind([], [], [tensor])
    for _ in range(20):
        tensor.data = torch.ones(1000)
        assert not watch.holds()


def test_a_replaced_object_stays_alive(kind):
    """Else a new one could be made where the old one was, and be taken for it."""
    owner = {"value": Box()}
    reference = weakref.ref(owner["value"])
    watch = kind([(owner, "value", owner["value"])], [], [])
    owner["value"] = Box()
    gc.collect()
    assert reference() is not None
    assert not watch.holds()


def test_a_cycle_is_collected(kind):
    owner = Box(value=Box())
    owner["watch"] = kind([(owner, "value", owner["value"])], [(owner, 2)], [])
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    "arguments",
    [([1], [], []), ([({}, "a")], [], []), ([], [1], []), ([], [], [None]), ([], [({}, "a")], [])],
)
def test_rejects(arguments):
    extension = pytest.importorskip("fastconv._C")
    with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)):
        extension.Watch(*arguments)
