"""The activation functions: every spelling matched, and held to stock in float64, straight after a BatchNorm,
after an addition and after a projection; by the reference engine in float64, by the native one in float32 and
bfloat16."""

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images
from bench.oracle.operations import activation, affine, norm
from bench.oracle.stock import assert_like_stock, assert_same, error, fused, run, stock
from fastbn.engine.interface import LazyActivation, Mask
from fastbn.engine.native import build
from fastbn.engine.native.abi import FUNCTIONS
from fastbn.engine.native.engine import Native
from fastbn.engine.program.build import read
from fastbn.engine.reference.engine import Reference
from fastbn.graph.activations import NAMES, Function
from fastbn.graph.pointwise import FORMULAS
from fastbn.graph.regions import Join
from fastbn.planning.explain import explain

native = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
MODULES = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(inplace=True),
    "silu": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(inplace=True),
    "mish": nn.Mish(inplace=True),
    "leaky_relu": nn.LeakyReLU(0.2, inplace=True),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}
CALLS = {
    "relu": lambda x: F.relu(x, inplace=True),
    "relu6": F.relu6,
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, True),
    "hardsigmoid": F.hardsigmoid,
    "mish": lambda x: F.mish(x, inplace=True),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "leaky_relu in place": lambda x: F.leaky_relu_(x, 0.3),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Blocks(nn.Module):
    """A stem, a projection block and an identity block; their BatchNorms reach well beyond every bend of
    the functions."""

    def __init__(self, function):
        super().__init__()
        for name, inside, stride in (("stem", 3, 1), ("a", 20, 2), ("p", 20, 2), ("b", 20, 1)):
            self.add_module(name, nn.Conv2d(inside, 20, 3, stride, padding=1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(20))
        self.function = function

    def forward(self, x):
        x = self.function(self.stem_bn(self.stem(x)))
        x = self.function(self.a_bn(self.a(x)) + self.p_bn(self.p(x)))
        return self.function(self.b_bn(self.b(x)) + x)


def blocks(function):
    net = frozen_convolutions(Blocks(copy.deepcopy(function)))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(3)
    return net


def functions(model):
    return [join.function.name for region in explain(model).graph.regions for join in region.joins]


def test_every_name_has_its_formulas_in_each_engine():
    assert set(FUNCTIONS) == NAMES == {"identity", *FORMULAS} == {"identity", *MODULES}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spelled", [*MODULES.items(), *CALLS.items()], ids=lambda given: given[0])
def test_like_stock(spelled, training):
    name, function = spelled
    ours = assert_like_stock(blocks(function).train(training), images(3, 9, 7, grad=True))
    assert functions(ours) == [name.split()[0]] * 3


def test_a_parameter_that_the_trace_computes_is_not_matched():
    net = blocks(lambda x: F.leaky_relu(x, x.shape[1] / 100))
    assert set(functions(assert_like_stock(net, images(2)))) == {"identity"}


@native
@pytest.mark.parametrize("name", MODULES)
def test_native_in_float32(name):
    net, x = blocks(MODULES[name]), images(3, 9, 7, dtype=torch.float32, grad=True)
    smooth = not Function(name).bit  # a function with a bend may be on the other side of it in float32
    expected = run(stock(net).double(), x.detach().double().requires_grad_())
    ours = fused(net, "native")
    assert functions(ours) == [name] * 3
    assert_same(run(ours, x), expected, 2e-5 if smooth else 2e-2)


@native
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2.0**-7)], ids=str)
@pytest.mark.parametrize("after", ["nothing", "addition"])
@pytest.mark.parametrize("name", MODULES)
def test_native_pointwise(name, after, dtype, tolerance):
    """z and ds by themselves, of n from −30 to 30, whose vectors are not all whole."""
    function, engine = Function(name, 0.2 if name == "leaky_relu" else 0.0), Native()
    y, residual = activation(2, 21, 5, 6, seed=1, dtype=dtype), activation(2, 21, 5, 6, seed=2, dtype=dtype)
    own, residual = norm(21, 3), residual if after == "addition" else None
    own.scale.mul_(8)
    formed = engine.form(LazyActivation((y,), (own,), residual, function), after == "addition")
    n = y.double() * own.scale.double().view(1, -1, 1, 1) + own.shift.double().view(1, -1, 1, 1)
    n = (n + (0 if residual is None else residual.double())).requires_grad_()
    z = MODULES[name].double()(n.clone())
    assert error(formed.z, z) < tolerance
    dz = activation(2, 21, 5, 6, seed=4, dtype=dtype)
    z.backward(dz.double())
    ds, _ = engine.gradient(
        [], [dz], Mask(function, formed.mask, (y,), (own,), (affine(21),)), tuple(y.shape)
    )
    assert error(ds, n.grad) < 2 * tolerance


@native
@pytest.mark.parametrize("name", MODULES)
def test_a_nan_passes(name):
    y, own = activation(1, 5, 3, 3, seed=1), norm(5, 2)
    y[0, 2, 1, 1] = float("nan")
    for engine in (Native(), Reference()):
        z = engine.form(LazyActivation((y,), (own,), None, Function(name)), False).z
        assert z.isnan().sum() == 1 and z[0, 2, 1, 1].isnan()


def test_what_is_saved_is_a_bit_where_a_bit_suffices():
    """After an addition; straight after a BatchNorm nothing is."""
    joins = {name: Join(1, (), 0, Function(name)) for name in NAMES}
    assert {name for name, join in joins.items() if join.needs_mask and join.function.bit} == {
        "relu",
        "relu6",
        "hardsigmoid",
        "leaky_relu",
    }
    assert not joins["identity"].needs_mask and joins["silu"].needs_mask


def test_a_function_that_the_engine_lacks_ends_the_region():
    class Few(Reference):
        functions = frozenset({"identity", "relu"})

    graph, program = read(net := blocks(nn.SiLU()).double(), {}, Few(), {})
    assert {join.function.name for region in graph.regions for join in region.joins} == {"identity"}
    assert ("function", "the engine has no silu") in graph.stock
    expected = stock(net)(images(2))
    assert error(program(images(2)), expected) < 1e-9
