"""What a trace would change the meaning of is seen: that part runs as it was written, or the call runs
stock and says why."""

import copy
import gc
import random
import sys
import threading
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from habits import Reverse, Same
from nets import frozen_convolutions
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import update_bn

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock, tolerance
from fastbn.engine import fuse, fused_forward
from fastbn.engine.program import compare
from fastbn.graph.trace import tracer as tracing
from fastbn.planning import step_memory
from fastbn.planning.explain import explain

EXACT = tolerance(torch.float64)


class Part(nn.Module):
    """convolution -> BatchNorm -> ReLU; a forward is the test's own."""

    def __init__(self, inside=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inside, 4, 3, padding=1), norm(4)

    def body(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.body(x)


class Whole(nn.Module):
    """A part that is fused, the one under test, and another that is fused."""

    def __init__(self, part):
        super().__init__()
        self.first, self.part, self.last = Part(3), part, Part()

    def forward(self, x):
        return self.last(self.part(self.first(x)))


class NoGrad(Part):
    def forward(self, x):
        with torch.no_grad():
            return self.body(x)


class EnableGrad(Part):
    def forward(self, x):
        with torch.enable_grad():
            return self.body(x) * 1.0


class Inference(Part):
    def forward(self, x):
        with torch.inference_mode():
            gate = x.mean((2, 3), keepdim=True).sigmoid()
        return self.body(x) * gate.clone()


class Autocast(Part):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x)


class Checkpoint(Part):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)


class Reentrant(Part):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=True)


class Hooked(Part):
    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: t, lambda t: 2 * t if t.is_floating_point() and t.dim() > 3 else t
        ):
            return torch.sin(self.body(x))


class SetsMode(Part):
    def forward(self, x):
        x = self.body(x)
        torch.set_grad_enabled(False)
        y = x * 2.0
        torch.set_grad_enabled(True)
        return x + y


class Penalty(Part):
    def forward(self, x):
        x = self.body(x)
        self.penalty = x.square().mean()
        return x


class Caught(Part):
    """Python code that takes any error for an answer."""

    def forward(self, x):
        x = self.body(x)
        try:
            self.penalty = x.mean()
        except BaseException:
            return x * 0.0
        return x


class Decides(Part):
    def forward(self, x):
        return self.body(x) if x.mean() > -100 else x


class Generator(Part):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(3)

    def forward(self, x):
        return self.body(x) * self.generator.random()


class Rolls(Part):
    def forward(self, x):
        return self.body(x) if random.random() < 0.5 else 2.0 * x


class ListOfModules(Part):
    """A module that is none of the submodules."""

    def __init__(self):
        super().__init__()
        self.hidden = [nn.BatchNorm2d(4).double()]

    def forward(self, x):
        return self.hidden[0](self.body(x))


class Buffer(Part):
    def __init__(self):
        super().__init__()
        self.register_buffer("ema", torch.ones(4, dtype=torch.float64))

    def forward(self, x):
        x = self.body(x)
        self.ema.lerp_(x.detach().mean((0, 2, 3)), 0.5)
        return x * self.ema.view(-1, 1, 1)


SEEN = {
    NoGrad: "the grad mode",
    Inference: "the inference mode",
    Autocast: "autocast on cpu",
    Checkpoint: "checkpoint",
    Reentrant: "CheckpointFunction",
    Hooked: "saved-tensor hooks",
    SetsMode: "the grad mode",
    Penalty: "sets self.penalty",
    Caught: "sets self.penalty",
    Decides: "control flow",
    Generator: "reads self.generator, a Random",
    Rolls: "random numbers",
    ListOfModules: "not among its submodules",
    Buffer: "writes to",
}


def net(part):
    return frozen_convolutions(part).double()


@pytest.fixture(autouse=True)
def seeded():
    random.seed(1)
    torch.manual_seed(1)


def both(model, *inputs, calls=3):
    """Three calls, fused and stock, from the same random numbers."""
    ours, theirs = fused(model), stock(model)
    for call in range(calls):
        random.seed(call)
        mine = run(ours, *inputs)
        random.seed(call)
        assert_same(mine, run(theirs, *inputs), EXACT)
    return ours, theirs


@pytest.mark.parametrize("kind", SEEN)
def test_a_part_runs_as_it_was_written(kind):
    """The rest is fused, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = both(net(Whole(kind())), images(3, grad=True))
    graph = explain(ours).graph
    assert [conv.name for region in graph.regions for conv in region.convs] == ["first.conv", "last.conv"]
    (why,) = [why for what, why in graph.stock if what == "part"]
    assert SEEN[kind] in why and why.startswith("test_engine_watch.py:")


@pytest.mark.parametrize("kind", [kind for kind in SEEN if kind not in (Generator,)])
def test_a_model_that_can_t_be_traced_runs_stock_and_says_why_once(kind):
    model = net(kind())
    with pytest.warns(UserWarning, match="stock in this call") as caught:
        ours, theirs = both(model, images(3, channels=4, grad=True))
    said = [str(w.message) for w in caught if "fastbn" in str(w.message)]
    assert len(said) == 1 and SEEN[kind] in said[0] and "test_engine_watch.py:" in said[0]
    if kind is Penalty:
        for each in (ours, theirs):
            each.zero_grad()
            (each(images(3, channels=4)).mean() + each.penalty).backward()
        assert torch.equal(ours.bn.weight.grad, theirs.bn.weight.grad)


def test_a_mode_that_is_the_one_around_the_call_changes_nothing():
    ours, theirs = both(net(Whole(EnableGrad())), images(3))
    assert not [why for _, why in explain(ours).graph.stock if why]
    with torch.no_grad():
        assert ours(images(3)).requires_grad == theirs(images(3)).requires_grad


def marks(model):
    """Return all that a model holds: tensors with their versions, attributes, submodules."""
    found = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            held = value.items() if isinstance(value, dict) else [(key, value)]
            found += [
                (name, key, k, id(v), getattr(v, "_version", None), repr(v))
                for k, v in held
                if k != "forward"
            ]
    return found


@pytest.mark.parametrize("kind", [*SEEN, Part])
def test_tracing_leaves_no_mark(kind):
    model = net(Whole(kind()))
    before, drawn, python = marks(model), torch.get_rng_state(), random.getstate()
    explain(fuse(model, "reference"))
    explain(fuse(model, "stock"))
    assert marks(model) == before
    assert (
        torch.equal(torch.get_rng_state(), drawn) and random.getstate() == python and torch.is_grad_enabled()
    )


KEPT = threading.local()  # which nobody can look into


def test_a_tensor_that_somebody_else_keeps():
    class Keeps(Part):
        def forward(self, x):
            KEPT.tensors.append(self.body(x))
            return KEPT.tensors[-1]

    KEPT.tensors = []
    ours = fused(net(Whole(Keeps())))
    with pytest.warns(UserWarning, match="keeps a tensor beyond the call"):
        ours(images(3))
    assert len(KEPT.tensors) == 1 and isinstance(KEPT.tensors[0], torch.Tensor)


# ------ autograd functions


same, reverse = Same.apply, Reverse.apply  # as the documentation of torch.autograd.Function does it


@pytest.mark.parametrize(
    "call, regions",
    [
        (lambda x: Reverse.apply(x, 0.5), 2),
        (lambda x: Same.apply(x), 2),
        (lambda x: reverse(x, 0.5), 2),
        (same, 2),
    ],
    ids=["Reverse.apply", "Same.apply", "reverse", "same"],
)
def test_a_function_s_own_backward(call, regions):
    class Reversed(Part):
        def forward(self, x):
            return call(self.body(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = both(net(Whole(Reversed())), images(3, grad=True))
    assert len(explain(ours).graph.regions) == regions  # the function between them


def test_a_number_that_changes_from_call_to_call():
    """A gradient reversal's weight, which grows with the epoch, costs no trace a call."""

    class Domain(Part):
        def forward(self, x, by):
            return Reverse.apply(self.body(x), by)

    model = net(Domain(3))
    ours, theirs = fused(model), stock(model)
    for by in torch.linspace(0.1, 1.0, 12).tolist():
        mine, other = run(lambda_of(ours, by), images(3)), run(lambda_of(theirs, by), images(3))
        assert_same(mine, other, EXACT)
    assert sum(map(len, fused_forward(ours)._reading.programs.values())) < 8


def lambda_of(model, by):
    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, by)

    return Bound()


# ------ BatchNorm subclasses


class WrittenOut(nn.BatchNorm2d):
    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )
        return F.leaky_relu(x, 0.2)


class Renamed(nn.BatchNorm2d):
    pass


class OneLiner(nn.Module):
    """A norm of one's own, no BatchNorm by its class."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


@pytest.mark.parametrize("norm", [lambda n: WrittenOut(n, momentum=None), Renamed, OneLiner])
def test_norms_of_somebody_s_own(norm):
    model = net(Whole(Part(norm=norm)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = both(model, images(3))
        for each in (ours, theirs):
            update_bn([(images(3, seed=seed),) for seed in range(4)], each)
        assert_same(run(ours.eval(), images(3)), run(theirs.eval(), images(3)), EXACT)
    assert "first.conv" in [conv.name for region in explain(ours).graph.regions for conv in region.convs]


def test_explain_names_the_subclass():
    whys = dict(explain(fused(net(Whole(Part(norm=WrittenOut))))).graph.stock)
    assert "WrittenOut" in whys["part.conv"]


# ------ what Python reads


def test_attributes_that_decide():
    class Chosen(Part):
        def __init__(self):
            super().__init__()
            self.domain, self.scale, self.bns = (
                0,
                {"by": [1.0]},
                nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)]),
            )

        def forward(self, x):
            return F.relu(self.bns[self.domain](self.conv(x))) * self.scale["by"][0]

    model = net(Whole(Chosen()))
    ours, theirs = fused(model), stock(model)
    for domain, scale in ((0, 1.0), (1, 1.0), (0, 1.0), (1, 2.0), (0, 3.0), (1, 1.0)):
        for each in (ours, theirs):
            each.part.domain, each.part.scale["by"][0] = domain, scale
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert not [why for _, why in explain(ours).graph.stock if why]


def test_an_attribute_that_changes_at_each_call_is_read_at_each():
    class Scheduled(Part):
        scale = 1.0

        def forward(self, x):
            return self.body(x) * self.scale

    model = net(Whole(Scheduled()))
    ours, theirs = fused(model), stock(model)
    for i in range(15):
        for each in (ours, theirs):
            each.part.scale = 1.0 + i
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert ("part", "self.scale changes from call to call") in explain(ours).graph.stock


def test_draws_keep_their_order():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.drop = Part(3), Part(), Part(), nn.Dropout(0.5)

        def forward(self, x):
            x = self.a(x)
            late = self.drop(torch.tanh(self.b(x)))
            early = torch.rand(1, dtype=x.dtype) * torch.tanh(x)
            noise = torch.randn_like(x) if self.training else 0.0
            return self.c(x) + late + early + noise + F.dropout(x, 0.3, self.training)

    both(net(Noisy()), images(3, grad=True))


# ------ copies


def test_copies_run_on_their_own_weights():
    model = fused(net(Whole(Part())))
    model(images(3))
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules, first=net(Part(3)))
    nn.init.constant_(shallow.first.bn.weight, 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(shallow(images(3)), stock(shallow)(images(3)), atol=1e-9)
    assert fused_forward(shallow).model is shallow and fused_forward(model).model is model


def test_a_replica_runs_on_its_own_weights():
    model = fused(net(Whole(Part())))
    expected = model(images(3))
    replica = model._replicate_for_data_parallel()
    replica._is_replica = True
    replica._modules = dict(stock(model)._modules, first=net(Part(3)))
    nn.init.constant_(replica.first.bn.weight, 5.0)
    with pytest.warns(UserWarning, match="DataParallel"):
        assert not torch.allclose(replica(images(3)), expected)


def wrapped(model):
    """Wrap a forward as accelerate prepares a model: around the function, and bound again."""
    inner = model.forward.__func__

    def forward(self, *args, **kwargs):
        return inner(self, *args, **kwargs) * 2.0

    forward.__wrapped__ = inner
    model.forward = types.MethodType(forward, model)
    return model


def test_a_wrapper_that_binds_the_forward_anew():
    model = wrapped(fused(net(Whole(Part())).eval()))
    assert explain(model).fused and fused_forward(model) is not None
    twin = copy.deepcopy(model)
    nn.init.constant_(twin.first.bn.weight, 5.0)
    assert fused_forward(twin).model is twin
    x = images(3)
    assert torch.allclose(twin(x), 2.0 * stock(stock(twin))(x)) and not torch.allclose(twin(x), model(x))
    model.forward = types.MethodType(model.forward.__wrapped__, model)
    assert torch.allclose(model(x) * 2.0, wrapped(fused(stock(model)))(x)) and explain(model).fused


# ------ arguments


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((), {}),
        ((1,), {}),
        ((), {"domain": 1}),
        ((1, torch.ones(1)), {}),
        ((0,), {"more": [torch.ones(1), 2]}),
    ],
)
def test_arguments_of_all_kinds(args, kwargs):
    class Many(Part):
        def forward(self, x, *args, names=[], domain=0, **options):  # noqa: B006
            x = self.body(x) * (domain + 1) + len(names)
            for value in (*args, *options.get("more", ())):
                x = x + value
            return x

    model = net(Many(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(
            fused(model)(images(3), *args, **kwargs), stock(model)(images(3), *args, **kwargs), atol=1e-9
        )
    assert explain(fused(model)).graph.regions


def test_a_required_integer():
    class Domains(Part):
        def __init__(self):
            super().__init__(3)
            self.bns = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])

        def forward(self, x, domain: int):
            return F.relu(self.bns[domain](self.conv(x)))

    model = net(Domains())
    ours, theirs = fused(model), stock(model)
    assert "control flow" in str(explain(ours)) or "Domains" in str(explain(ours))
    for domain in (0, 2, 1, 0):
        assert torch.allclose(ours(images(3), domain), theirs(images(3), domain), atol=1e-9)
    assert [len(region.convs) for region in explain(ours).graph.regions] == [1]


# ------ the process around


def test_a_first_call_beside_other_threads():
    model, other = fused(net(Whole(Part()))), net(Whole(Penalty()))
    errors, stop = [], threading.Event()

    def beside():
        try:
            while not stop.is_set():
                Reverse.apply(other(images(1)), 1.0).mean().backward()
        except BaseException as error:
            errors.append(error)

    def first():
        try:
            for _ in range(4):
                copy.deepcopy(model)(images(2))
        except BaseException as error:
            errors.append(error)

    busy = threading.Thread(target=beside)
    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in (busy, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    busy.join()
    assert not errors
    assert torch.autograd.Function.apply.__func__.__module__ == "torch.autograd.function"  # its own again


def test_exchanged_norms_are_traced_once_a_set(monkeypatch):
    traces = []
    monkeypatch.setattr(
        tracing.Tracer,
        "run",
        lambda self, call, own=tracing.Tracer.run: (traces.append(self), own(self, call))[1],
    )
    model = fused(net(Whole(Part())))
    theirs = stock(model)
    sets = [(each, copy.deepcopy(each.first.bn), copy.deepcopy(each.first.bn)) for each in (model, theirs)]
    for call in range(6):
        for each, *norms in sets:
            each.first.bn = norms[call % 2]
        assert_same(run(model, images(2, seed=call)), run(theirs, images(2, seed=call)), EXACT)
    assert len(traces) == 2


def test_fake_and_meta_tensors_run_stock():
    model = fused(net(Whole(Part())))
    real = model(images(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.empty(3, 3, 8, 8, dtype=torch.float64)).shape == real.shape
        meta = fused(net(Whole(Part()))).to("meta")
        assert meta(images(3).to("meta")).is_meta


def test_transforms_of_torch_func_run_stock():
    model = fused(net(Whole(Part())).eval())
    with pytest.warns(UserWarning, match=r"torch\.func"):
        found = torch.func.vmap(model)(torch.stack([images(2), images(2, seed=2)]))
    assert torch.allclose(found[1], stock(model)(images(2, seed=2)))


# ------ the comparison at the first call


class Asks(Part):
    """What a proxy answers, no tensor would."""

    def forward(self, x):
        return self.body(x) * (2.0 if isinstance(x, torch.Tensor) else 3.0)


def test_what_nobody_sees_is_compared():
    model = net(Asks(3))
    with pytest.warns(UserWarning, match="traced by torch.fx it is not the same: its outputs") as caught:
        ours, _ = both(model, images(3))
    assert len(caught) == 1 and "not the same" in str(explain(ours))
    unchecked = fuse(copy.deepcopy(model), "reference", check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(unchecked(images(3)), 1.5 * stock(model)(images(3)))


def test_the_comparison_takes_a_part_once_a_mode():
    seen = threading.local()
    seen.batches = []

    class Counted(Part):
        def forward(self, x):
            seen.batches.append(x.shape[0] if isinstance(x, torch.Tensor) else "traced")
            return self.body(x)

    ours = fused(net(Counted(3)))
    for training in (True, True, False, False):
        ours.train(training)
        ours(images(16))
    assert seen.batches == ["traced", 2, 2]  # one trace serves both modes


def test_the_comparison_lets_go_of_what_it_made(monkeypatch):
    """A ReLU saves its own output: handed to autograd as it is, it would keep itself alive, and its graph."""
    left, x = [], images(4, 64, 64)

    def counted(*arguments):
        with step_memory.Counted() as memory:
            memory.note(x)
            found = compare.difference(*arguments)
            gc.collect()
            left.append(memory.live - x.nbytes)
        return found

    monkeypatch.setattr(sys.modules["fastbn.engine.fuse"], "difference", counted)
    fused(net(Part(3)))(x)
    assert left[0] < 2 * 4 * 32 * 32 * 8  # bytes of one activation, of two images' corners


class Flat(Part):
    """A head of a fixed size: no part of an image will do."""

    def __init__(self):
        super().__init__(3)
        self.head = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Projected(Flat):
    """A BatchNorm that refuses one image."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(super().forward(x))


@pytest.mark.parametrize("kind", [lambda: Part(3), lambda: Whole(Part()), Flat, Projected])
@pytest.mark.parametrize("batch", [3, 8, 16])
def test_the_comparison_costs_less_than_a_forward(kind, batch, monkeypatch):
    """The cost is the pixels that the first convolution reads, in all trials together."""
    read = []
    own = nn.Conv2d.forward
    model = fused(net(kind()))
    monkeypatch.setattr(compare, "_trial", counting(compare._trial, read))
    model(images(batch))
    monkeypatch.undo()
    assert nn.Conv2d.forward is own and read
    if kind is not Projected or batch > 3:  # where three images must all be seen
        assert sum(read) < images(batch).numel()


def counting(trial, read):
    def counted(model, run, tensors):
        read.append(tensors[0].numel())
        return trial(model, run, tensors)

    return counted
